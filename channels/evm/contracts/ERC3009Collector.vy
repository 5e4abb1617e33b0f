# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title ERC3009Collector
@license Apache-2.0
@notice Moves a payer's tokens into the escrow by an EIP-3009 authorisation whose nonce is bound to one channel.
@dev Threats and what stops each:
     - Somebody else's authorisation paid into the attacker's channel: the nonce is the hash of channel id and salt,
       so the token refuses the signature under any other channel.
     - An authorisation taken from the mempool: `receiveWithAuthorization` pays only its own caller, this contract.
     - Tokens pulled without a channel: only the escrow may call, and nothing stays here.
"""

interface Token:
    def receiveWithAuthorization(
        payer: address, to: address, amount: uint256, validAfter: uint256, validBefore: uint256, nonce: bytes32,
        signature: Bytes[65]
    ): nonpayable
    def transfer(to: address, amount: uint256) -> bool: nonpayable

ESCROW: constant(address) = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003


@external
def collect(payer: address, token: address, amount: uint256, channelId: bytes32, collectorData: Bytes[1024]):
    """
    @notice Takes `amount` from `payer` and hands it to the escrow.
    @param payer Who signed.
    @param token An ERC-20 with EIP-3009's signature-bytes form.
    @param amount In the token's atomic units.
    @param channelId What the authorisation's nonce is bound to.
    @param collectorData ABI of (uint256 validAfter, uint256 validBefore, uint256 salt, bytes signature).
    """
    if not (msg.sender == ESCROW):
        raw_revert(method_id("NotEscrow()"))
    validAfter: uint256 = 0
    validBefore: uint256 = 0
    salt: uint256 = 0
    signature: Bytes[65] = b""
    validAfter, validBefore, salt, signature = abi_decode(collectorData, (uint256, uint256, uint256, Bytes[65]))
    nonce: bytes32 = keccak256(abi_encode(channelId, salt))
    extcall Token(token).receiveWithAuthorization(payer, self, amount, validAfter, validBefore, nonce, signature)
    if not extcall Token(token).transfer(msg.sender, amount, default_return_value=True):
        raw_revert(method_id("TransferFailed()"))
