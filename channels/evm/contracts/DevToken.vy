# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title DevToken
@license Apache-2.0
@notice An ERC-20 with 6 decimals and EIP-3009 for development chains: anybody may mint it, so it is worth nothing.
@dev Threats and what stops each:
     - Taken for money: the name says that it is for development; the mesh refuses it on chains that are not.
     - A signature used twice or out of its window: a nonce is spent once, times are checked against the block.
     - An authorisation taken by somebody else: only the `to` that was signed may send it.
     Name and version are constants, so that code placed without a constructor has the same domain rules.
"""
# Some conditions stand as `if not (…)`: their negation compiles to other bytecode than the one that stands on chains.

event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    amount: uint256

event Approval:
    owner: indexed(address)
    spender: indexed(address)
    amount: uint256

event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)

HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
RECEIVE_TYPE: constant(bytes32) = keccak256("ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)")
NAME: constant(String[16]) = "Leben Dev Dollar"
VERSION: constant(String[1]) = "1"

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])
totalSupply: public(uint256)


@pure
@external
def name() -> String[16]:
    """
    @notice The token's name, part of its EIP-712 domain.
    """
    return NAME


@pure
@external
def version() -> String[1]:
    """
    @notice The domain's version.
    """
    return VERSION


@pure
@external
def symbol() -> String[4]:
    """
    @notice The token's symbol.
    """
    return "LDEV"


@pure
@external
def decimals() -> uint8:
    """
    @notice 1 000 000 atomic units are 1.00.
    """
    return 6


@external
def mint(to: address, amount: uint256):
    """
    @notice Makes tokens out of nothing.
    """
    self.balanceOf[to] += amount
    self.totalSupply += amount
    log Transfer(sender=empty(address), receiver=to, amount=amount)


@external
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Moves the sender's tokens.
    """
    self._move(msg.sender, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Lets another account move the sender's tokens.
    """
    self.allowance[msg.sender][spender] = amount
    log Approval(owner=msg.sender, spender=spender, amount=amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    """
    @notice Moves an owner's tokens within the sender's allowance.
    """
    self.allowance[owner][msg.sender] -= amount
    self._move(owner, to, amount)
    return True


@external
def receiveWithAuthorization(
    payer: address, to: address, amount: uint256, validAfter: uint256, validBefore: uint256, nonce: bytes32,
    signature: Bytes[65]
):
    """
    @notice EIP-3009: takes tokens by the payer's signature; only the signed receiver may send it, once a nonce.
    """
    if not (to == msg.sender):
        raw_revert(method_id("NotReceiver()"))
    if block.timestamp <= validAfter:
        raw_revert(method_id("NotYetValid()"))
    if block.timestamp >= validBefore:
        raw_revert(method_id("Expired()"))
    if self.authorizationState[payer][nonce]:
        raw_revert(method_id("NonceUsed()"))
    self.authorizationState[payer][nonce] = True
    structHash: bytes32 = keccak256(abi_encode(RECEIVE_TYPE, payer, to, amount, validAfter, validBefore, nonce))
    digest: bytes32 = keccak256(concat(b"\x19\x01", self._separator(), structHash))
    if not (len(signature) == 65):
        raw_revert(method_id("InvalidSignature()"))
    s: uint256 = convert(slice(signature, 32, 32), uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if not ((v == 27 or v == 28) and s <= HALF_N):
        raw_revert(method_id("InvalidSignature()"))
    signer: address = ecrecover(digest, v, convert(slice(signature, 0, 32), uint256), s)
    if not (signer == payer and payer != empty(address)):
        raw_revert(method_id("InvalidSignature()"))
    log AuthorizationUsed(authorizer=payer, nonce=nonce)
    self._move(payer, to, amount)


@internal
def _move(sender: address, to: address, amount: uint256):
    self.balanceOf[sender] -= amount
    self.balanceOf[to] += amount
    log Transfer(sender=sender, receiver=to, amount=amount)


@view
@internal
def _separator() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, keccak256(NAME), keccak256(VERSION), chain.id, self))
