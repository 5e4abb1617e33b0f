# pragma version 0.4.3
# pragma evm-version cancun
"""
@notice A token for tests that takes a fee, or calls back into the escrow whenever it is moved.
"""
balanceOf: public(HashMap[address, uint256])
fee: public(uint256)
target: public(address)
back: public(Bytes[4096])


@external
def arm(fee: uint256, target: address, back: Bytes[4096]):
    self.fee = fee
    self.target = target
    self.back = back


@external
def mint(to: address, amount: uint256):
    self.balanceOf[to] += amount


@external
def transfer(to: address, amount: uint256) -> bool:
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[to] += amount - self.fee
    if self.target != empty(address):
        raw_call(self.target, self.back)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount - self.fee
    return True


@external
def collect(payer: address, token: address, amount: uint256, channelId: bytes32, data: Bytes[1024]):
    self.balanceOf[payer] -= amount
    self.balanceOf[msg.sender] += amount - self.fee
    if self.target != empty(address):
        raw_call(self.target, self.back)
