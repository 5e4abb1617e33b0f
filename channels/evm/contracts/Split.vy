# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Split
@license Apache-2.0
@notice Takes what an epoch of calls earned and credits the owners of knowledge, guideline, data and compute and the
        operator; each takes out its own. It publishes the Merkle root of the epoch's receipts with the money.
@dev Threats and what stops each:
     - Credits without money: an epoch is credited only with tokens that were moved in by the same call.
     - An owner that cannot be paid, or reverts, stops everybody: nobody is paid here, each takes out its own.
     - An epoch paid or published twice, or a root changed afterwards: once a receiver, token and epoch.
     - Somebody else's withdrawal: only the owner, or its signature with a nonce, moves its credit.
     - A token that calls back: one lock, and credits move before money.
     Sums are exact: the credits of a call are what is moved in, to the last atomic unit.
"""

interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def balanceOf(account: address) -> uint256: view

struct Credit:
    owner: address
    carrier: uint8
    dapp: bytes32
    amount: uint128

event Published:
    receiver: indexed(address)
    token: indexed(address)
    epoch: indexed(uint256)
    root: bytes32
    amount: uint256

event Credited:
    owner: indexed(address)
    token: indexed(address)
    dapp: indexed(bytes32)
    carrier: uint8
    amount: uint128

event Withdrawn:
    owner: indexed(address)
    token: indexed(address)
    to: address
    amount: uint256
    nonce: uint256

MAX_CREDITS: constant(uint256) = 256
UNSIGNED: constant(uint256) = max_value(uint256)  # in the event of a withdrawal that its owner sent itself
HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
NAME: constant(bytes32) = keccak256("Leben Mesh Split")
VERSION: constant(bytes32) = keccak256("1")
PAYOUT_TYPE: constant(bytes32) = keccak256("Payout(address token,address owner,address to,uint256 amount,uint256 nonce)")

roots: public(HashMap[address, HashMap[address, HashMap[uint256, bytes32]]])
earnings: public(HashMap[address, HashMap[address, uint256]])
spent: public(HashMap[address, HashMap[uint256, bool]])


@external
@nonreentrant
def split(token: address, epoch: uint256, root: bytes32, credits: DynArray[Credit, MAX_CREDITS]):
    """
    @notice Moves the sum of the credits in from the sender, its receiver, and credits the owners.
    @param token What the calls were paid in; this contract has the sender's allowance.
    @param epoch The sender's settlement epoch; once.
    @param root Merkle root of the epoch's receipts, never zero.
    @param credits Who earned what, for which carrier (0 knowledge, 1 data, 2 compute, 3 operator, 4 guideline) of which DApp.
    """
    if root == empty(bytes32) or self.roots[msg.sender][token][epoch] != empty(bytes32):
        raw_revert(method_id("EpochPublished()"))
    self.roots[msg.sender][token][epoch] = root
    total: uint256 = 0
    for credit: Credit in credits:
        if credit.owner == empty(address) or credit.carrier > 4:
            raw_revert(method_id("InvalidCredit()"))
        total += convert(credit.amount, uint256)
        self.earnings[token][credit.owner] += convert(credit.amount, uint256)
        log Credited(
            owner=credit.owner, token=token, dapp=credit.dapp, carrier=credit.carrier, amount=credit.amount
        )
    before: uint256 = staticcall Token(token).balanceOf(self)
    if total > 0:
        if not extcall Token(token).transferFrom(msg.sender, self, total, default_return_value=True):
            raw_revert(method_id("TransferFailed()"))
    if staticcall Token(token).balanceOf(self) < before + total:
        raw_revert(method_id("DepositNotReceived()"))
    log Published(receiver=msg.sender, token=token, epoch=epoch, root=root, amount=total)


@external
@nonreentrant
def withdraw(token: address, to: address, amount: uint256):
    """
    @notice Takes out the sender's own earnings.
    @param token In what.
    @param to Where they go.
    @param amount At most what the sender has earned.
    """
    self._withdraw(token, msg.sender, to, amount, UNSIGNED)


@external
@nonreentrant
def withdrawWithSignature(
    token: address, owner: address, to: address, amount: uint256, nonce: uint256, signature: Bytes[65]
):
    """
    @notice The same, sent by anybody with the owner's signature; a nonce is used once, in any order.
    @param token In what.
    @param owner Whose earnings.
    @param to Where they go.
    @param amount At most what the owner has earned.
    @param nonce Any number that this owner has not used, below 2^256 - 1.
    @param signature Over `getPayoutDigest(token, owner, to, amount, nonce)`.
    """
    # In no order: an owner's requests are drawn at random, and one that is never sent must not stop the next.
    if nonce == UNSIGNED or self.spent[owner][nonce]:
        raw_revert(method_id("InvalidNonce()"))
    self.spent[owner][nonce] = True
    if len(signature) != 65:
        raw_revert(method_id("InvalidSignature()"))
    s: uint256 = convert(slice(signature, 32, 32), uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if (v != 27 and v != 28) or s > HALF_N:
        raw_revert(method_id("InvalidSignature()"))
    digest: bytes32 = self._digest(token, owner, to, amount, nonce)
    signer: address = ecrecover(digest, v, convert(slice(signature, 0, 32), uint256), s)
    if signer != owner or owner == empty(address):
        raw_revert(method_id("InvalidSignature()"))
    self._withdraw(token, owner, to, amount, nonce)


@view
@external
def getPayoutDigest(token: address, owner: address, to: address, amount: uint256, nonce: uint256) -> bytes32:
    """
    @notice What an owner signs to take out its earnings.
    """
    return self._digest(token, owner, to, amount, nonce)


@internal
def _withdraw(token: address, owner: address, to: address, amount: uint256, nonce: uint256):
    if amount == 0 or amount > self.earnings[token][owner] or to == empty(address):
        raw_revert(method_id("InvalidAmount()"))
    self.earnings[token][owner] -= amount
    if not extcall Token(token).transfer(to, amount, default_return_value=True):
        raw_revert(method_id("TransferFailed()"))
    log Withdrawn(owner=owner, token=token, to=to, amount=amount, nonce=nonce)


@view
@internal
def _digest(token: address, owner: address, to: address, amount: uint256, nonce: uint256) -> bytes32:
    separator: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, self))
    structHash: bytes32 = keccak256(abi_encode(PAYOUT_TYPE, token, owner, to, amount, nonce))
    return keccak256(concat(b"\x19\x01", separator, structHash))
