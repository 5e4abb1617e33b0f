# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title ChannelEscrow
@license Apache-2.0
@notice Holds payers' deposits in channels and lets receivers claim what signed vouchers allow: the interface, domain
        and rules of x402's `batch-settlement`, written anew, for chains on which its own contract is not deployed.
@dev Threats and what stops each:
     - A second signature for one voucher (high s, another v): the gate before ecrecover takes 27 and 28 and low s only.
     - A signature for another chain or contract: the separator is computed from `self` and `chain.id` at every use, so
       code that is placed at a canonical address, or a chain that forks, has a domain of its own.
     - A token that calls back: deposit, settle, refund and withdrawal share one lock, and state moves before money.
     - A token that takes a fee: a deposit counts what has arrived, and refuses less than was named.
     - A receiver that claims after the money has gone: a withdrawal waits for the delay that the channel agreed to,
       pays what is left then, and never what was claimed.
     - An old claim sent again: a total that was claimed before moves nothing, and is no error, so batches can be
       repeated. A row above its ceiling, above the balance or without a signature reverts the whole batch.
     Payers' vouchers are signed by keys (65 bytes); a contract wallet names a key of its own as payerAuthorizer.
"""
# Some conditions stand as `if not (…)`: their negation compiles to other bytecode than the one that stands on chains.

interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def balanceOf(account: address) -> uint256: view

interface Collector:
    def collect(payer: address, token: address, amount: uint256, channelId: bytes32, data: Bytes[1024]): nonpayable

struct ChannelConfig:
    payer: address
    payerAuthorizer: address
    receiver: address
    receiverAuthorizer: address
    token: address
    withdrawDelay: uint40
    salt: bytes32

struct Voucher:
    channel: ChannelConfig
    maxClaimableAmount: uint128

struct VoucherClaim:
    voucher: Voucher
    signature: Bytes[65]
    totalClaimed: uint128

struct Channel:
    balance: uint128
    totalClaimed: uint128

struct Withdrawal:
    amount: uint128
    initiatedAt: uint40

struct Receiver:
    totalClaimed: uint128
    totalSettled: uint128

event Deposited:
    channelId: indexed(bytes32)
    payer: indexed(address)
    amount: uint128

event Claimed:
    channelId: indexed(bytes32)
    receiver: indexed(address)
    totalClaimed: uint128

event Settled:
    receiver: indexed(address)
    token: indexed(address)
    sender: indexed(address)
    amount: uint128

event Refunded:
    channelId: indexed(bytes32)
    payer: indexed(address)
    amount: uint128

event WithdrawInitiated:
    channelId: indexed(bytes32)
    amount: uint128
    initiatedAt: uint40

event WithdrawFinalized:
    channelId: indexed(bytes32)
    payer: indexed(address)
    amount: uint128

MAX_ROWS: constant(uint256) = 100
MIN_DELAY: constant(uint40) = 900
MAX_DELAY: constant(uint40) = 2_592_000
LOW: constant(uint128) = max_value(uint128)
HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
NAME: constant(bytes32) = keccak256("x402 Batch Settlement")
VERSION: constant(bytes32) = keccak256("1")
CONFIG_TYPE: constant(bytes32) = keccak256("ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)")
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND_TYPE: constant(bytes32) = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
ENTRY_TYPE: constant(bytes32) = keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)")
BATCH_TYPE: constant(bytes32) = keccak256("ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)")

books: HashMap[bytes32, uint256]  # balance in the high half, totalClaimed in the low: one slot a channel
owed: HashMap[address, HashMap[address, uint256]]  # receiver, token: totalClaimed high, totalSettled low
pending: HashMap[bytes32, uint256]  # amount in the high part, initiatedAt in the low 40 bits; zero if there is none
refundNonce: public(HashMap[bytes32, uint256])


@external
@nonreentrant
def deposit(config: ChannelConfig, amount: uint128, collector: address, collectorData: Bytes[1024]):
    """
    @notice Opens a channel or adds to it. Anybody may send this: the collector proves that the payer agreed.
    @param config The channel.
    @param amount What must arrive, in the token's atomic units.
    @param collector Moves the payer's tokens here, bound to this channel.
    @param collectorData What the collector needs, the payer's authorisation for instance.
    """
    if not (config.payer != empty(address) and config.receiver != empty(address)):
        raw_revert(method_id("InvalidChannel()"))
    if not (config.receiverAuthorizer != empty(address) and config.token != empty(address)):
        raw_revert(method_id("InvalidChannel()"))
    if not (config.withdrawDelay >= MIN_DELAY and config.withdrawDelay <= MAX_DELAY):
        raw_revert(method_id("WithdrawDelayOutOfRange()"))
    if not (amount > 0):
        raw_revert(method_id("ZeroDeposit()"))
    channelId: bytes32 = self._id(config)
    before: uint256 = staticcall Token(config.token).balanceOf(self)
    extcall Collector(collector).collect(config.payer, config.token, convert(amount, uint256), channelId, collectorData)
    if staticcall Token(config.token).balanceOf(self) < before + convert(amount, uint256):
        raw_revert(method_id("DepositNotReceived()"))
    channel: Channel = self._channel(channelId)
    channel.balance += amount
    self._keep(channelId, channel)
    log Deposited(channelId=channelId, payer=config.payer, amount=amount)


@external
def claim(voucherClaims: DynArray[VoucherClaim, MAX_ROWS]):
    """
    @notice Brings channels' claimed totals up to what their vouchers allow, sent by the receivers' authoriser itself.
    @param voucherClaims All rows or none; a total that was claimed before moves nothing.
    """
    separator: bytes32 = self._separator()
    for row: VoucherClaim in voucherClaims:
        self._row(row, separator, msg.sender)


@external
def claimWithSignature(voucherClaims: DynArray[VoucherClaim, MAX_ROWS], authorizerSignature: Bytes[65]):
    """
    @notice The same, sent by anybody with the authoriser's signature over the batch.
    @param voucherClaims All rows or none, of receivers with one authoriser.
    @param authorizerSignature Over `getClaimBatchDigest(voucherClaims)`.
    """
    if len(voucherClaims) == 0:
        raw_revert(method_id("EmptyBatch()"))
    authorizer: address = voucherClaims[0].voucher.channel.receiverAuthorizer
    separator: bytes32 = self._separator()
    hashes: DynArray[bytes32, MAX_ROWS] = []
    for row: VoucherClaim in voucherClaims:
        hashes.append(self._row(row, separator, authorizer))
    if self._signer(self._batch(separator, hashes), authorizerSignature) != authorizer:
        raw_revert(method_id("InvalidSignature()"))


@external
@nonreentrant
def settle(receiver: address, token: address):
    """
    @notice Pays a receiver everything that was claimed for it and not yet paid; silent if there is nothing.
    @param receiver Who is paid; anybody may send this.
    @param token In what.
    """
    totals: Receiver = self._receiver(receiver, token)
    amount: uint128 = totals.totalClaimed - totals.totalSettled
    if amount > 0:
        self.owed[receiver][token] = self._pack(totals.totalClaimed, totals.totalClaimed)
        self._pay(token, receiver, amount)
        log Settled(receiver=receiver, token=token, sender=msg.sender, amount=amount)


@external
def initiateWithdraw(config: ChannelConfig, amount: uint128):
    """
    @notice Announces that the payer takes money out; the delay is the receiver's time to claim.
    @param config The channel.
    @param amount At most what is not claimed now.
    """
    if not (msg.sender == config.payer or msg.sender == config.payerAuthorizer):
        raw_revert(method_id("NotPayer()"))
    channelId: bytes32 = self._id(config)
    channel: Channel = self._channel(channelId)
    if not (amount > 0 and amount <= channel.balance - channel.totalClaimed):
        raw_revert(method_id("InvalidAmount()"))
    if self.pending[channelId] != 0:
        raw_revert(method_id("WithdrawalPending()"))
    self.pending[channelId] = (convert(amount, uint256) << 40) | block.timestamp
    log WithdrawInitiated(channelId=channelId, amount=amount, initiatedAt=convert(block.timestamp, uint40))


@external
@nonreentrant
def finalizeWithdraw(config: ChannelConfig):
    """
    @notice Pays the payer the withdrawal that was announced, or what is left of it, after the delay.
    @param config The channel.
    """
    if not (msg.sender == config.payer or msg.sender == config.payerAuthorizer):
        raw_revert(method_id("NotPayer()"))
    channelId: bytes32 = self._id(config)
    pending: Withdrawal = self._withdrawal(channelId)
    if pending.initiatedAt == 0:
        raw_revert(method_id("NoWithdrawalPending()"))
    if block.timestamp < convert(pending.initiatedAt, uint256) + convert(config.withdrawDelay, uint256):
        raw_revert(method_id("TooEarly()"))
    channel: Channel = self._channel(channelId)
    amount: uint128 = min(pending.amount, channel.balance - channel.totalClaimed)
    channel.balance -= amount
    self._keep(channelId, channel)
    self.pending[channelId] = 0
    if amount > 0:
        self._pay(config.token, config.payer, amount)
    log WithdrawFinalized(channelId=channelId, payer=config.payer, amount=amount)


@external
@nonreentrant
def refund(config: ChannelConfig, amount: uint128):
    """
    @notice Gives unclaimed money back to the payer at once, sent by the receiver's authoriser itself.
    @param config The channel.
    @param amount At most what is not claimed.
    """
    if not (msg.sender == config.receiverAuthorizer):
        raw_revert(method_id("NotAuthorizer()"))
    self._refund(config, amount)


@external
@nonreentrant
def refundWithSignature(config: ChannelConfig, amount: uint128, nonce: uint256, receiverAuthorizerSignature: Bytes[65]):
    """
    @notice The same, sent by anybody with the authoriser's signature; a nonce is used once, in order.
    @param config The channel.
    @param amount At most what is not claimed.
    @param nonce The channel's `refundNonce` now.
    @param receiverAuthorizerSignature Over `getRefundDigest(channelId, nonce, amount)`.
    """
    channelId: bytes32 = self._id(config)
    if not (nonce == self.refundNonce[channelId]):
        raw_revert(method_id("InvalidNonce()"))
    signer: address = self._signer(self._refundDigest(channelId, nonce, amount), receiverAuthorizerSignature)
    if not (signer == config.receiverAuthorizer):
        raw_revert(method_id("InvalidSignature()"))
    self._refund(config, amount)


@external
def multicall(data: DynArray[Bytes[8192], 8]) -> DynArray[Bytes[32], 8]:
    """
    @notice Several calls in one transaction, by the same sender: claim and refund together, so that neither can be
            overtaken. Not locked itself: each call takes the lock where it needs it.
    @param data Calldata of this contract's functions; one failure reverts all.
    """
    results: DynArray[Bytes[32], 8] = []
    for call: Bytes[8192] in data:
        results.append(raw_call(self, call, max_outsize=32, is_delegate_call=True))
    return results


@view
@external
def channels(channelId: bytes32) -> (uint128, uint128):
    """
    @notice A channel's balance (deposits less refunds and withdrawals) and its claimed total.
    """
    channel: Channel = self._channel(channelId)
    return channel.balance, channel.totalClaimed


@view
@external
def pendingWithdrawals(channelId: bytes32) -> (uint128, uint40):
    """
    @notice A channel's announced withdrawal and when it was announced; zeros if there is none.
    """
    pending: Withdrawal = self._withdrawal(channelId)
    return pending.amount, pending.initiatedAt


@view
@external
def receivers(receiver: address, token: address) -> (uint128, uint128):
    """
    @notice What was claimed for a receiver in a token, and what of it was paid.
    """
    totals: Receiver = self._receiver(receiver, token)
    return totals.totalClaimed, totals.totalSettled


@view
@external
def getChannelId(config: ChannelConfig) -> bytes32:
    """
    @notice The EIP-712 digest of a channel's config: its id.
    """
    return self._id(config)


@view
@external
def getVoucherDigest(channelId: bytes32, maxClaimableAmount: uint128) -> bytes32:
    """
    @notice What a payer's authoriser signs.
    """
    return self._digest(keccak256(abi_encode(VOUCHER_TYPE, channelId, maxClaimableAmount)))


@view
@external
def getRefundDigest(channelId: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    """
    @notice What a receiver's authoriser signs to give money back.
    """
    return self._refundDigest(channelId, nonce, amount)


@view
@external
def getClaimBatchDigest(voucherClaims: DynArray[VoucherClaim, MAX_ROWS]) -> bytes32:
    """
    @notice What a receiver's authoriser signs to claim these rows.
    """
    hashes: DynArray[bytes32, MAX_ROWS] = []
    for row: VoucherClaim in voucherClaims:
        channelId: bytes32 = self._id(row.voucher.channel)
        hashes.append(self._entry(channelId, row.voucher.maxClaimableAmount, row.totalClaimed))
    return self._batch(self._separator(), hashes)


@internal
def _row(row: VoucherClaim, separator: bytes32, authorizer: address) -> bytes32:
    config: ChannelConfig = row.voucher.channel
    if config.receiverAuthorizer != authorizer:
        raw_revert(method_id("NotAuthorizer()"))
    channelId: bytes32 = self._typed(separator, keccak256(abi_encode(CONFIG_TYPE, config)))
    channel: Channel = self._channel(channelId)
    # Before the signature: what was claimed before may be sent again in any batch, and moves nothing.
    if row.totalClaimed > channel.totalClaimed:
        if row.totalClaimed > row.voucher.maxClaimableAmount:
            raw_revert(method_id("ClaimExceedsCeiling()"))
        if row.totalClaimed > channel.balance:
            raw_revert(method_id("ClaimExceedsBalance()"))
        digest: bytes32 = self._typed(
            separator, keccak256(abi_encode(VOUCHER_TYPE, channelId, row.voucher.maxClaimableAmount))
        )
        payer: address = config.payer if config.payerAuthorizer == empty(address) else config.payerAuthorizer
        if self._signer(digest, row.signature) != payer:
            raw_revert(method_id("InvalidSignature()"))
        moved: uint128 = row.totalClaimed - channel.totalClaimed
        self.books[channelId] = self._pack(channel.balance, row.totalClaimed)
        totals: Receiver = self._receiver(config.receiver, config.token)
        self.owed[config.receiver][config.token] = self._pack(totals.totalClaimed + moved, totals.totalSettled)
        log Claimed(channelId=channelId, receiver=config.receiver, totalClaimed=row.totalClaimed)
    return self._entry(channelId, row.voucher.maxClaimableAmount, row.totalClaimed)


@internal
def _refund(config: ChannelConfig, amount: uint128):
    channelId: bytes32 = self._id(config)
    channel: Channel = self._channel(channelId)
    if not (amount > 0 and amount <= channel.balance - channel.totalClaimed):
        raw_revert(method_id("InvalidAmount()"))
    channel.balance -= amount
    self._keep(channelId, channel)
    # Moved by a refund without a signature too: a signature for an older state must not execute after it.
    self.refundNonce[channelId] += 1
    self._pay(config.token, config.payer, amount)
    log Refunded(channelId=channelId, payer=config.payer, amount=amount)


@internal
def _pay(token: address, to: address, amount: uint128):
    if not extcall Token(token).transfer(to, convert(amount, uint256), default_return_value=True):
        raw_revert(method_id("TransferFailed()"))


@view
@internal
def _channel(channelId: bytes32) -> Channel:
    packed: uint256 = self.books[channelId]
    return Channel(balance=convert(packed >> 128, uint128), totalClaimed=convert(packed & convert(LOW, uint256), uint128))


@internal
def _keep(channelId: bytes32, channel: Channel):
    self.books[channelId] = self._pack(channel.balance, channel.totalClaimed)


@view
@internal
def _receiver(receiver: address, token: address) -> Receiver:
    packed: uint256 = self.owed[receiver][token]
    return Receiver(
        totalClaimed=convert(packed >> 128, uint128), totalSettled=convert(packed & convert(LOW, uint256), uint128)
    )


@view
@internal
def _withdrawal(channelId: bytes32) -> Withdrawal:
    packed: uint256 = self.pending[channelId]
    return Withdrawal(
        amount=convert(packed >> 40, uint128), initiatedAt=convert(packed & convert(max_value(uint40), uint256), uint40)
    )


@pure
@internal
def _pack(high: uint128, low: uint128) -> uint256:
    return (convert(high, uint256) << 128) | convert(low, uint256)


@view
@internal
def _separator() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, self))


@pure
@internal
def _typed(separator: bytes32, structHash: bytes32) -> bytes32:
    return keccak256(concat(b"\x19\x01", separator, structHash))


@view
@internal
def _digest(structHash: bytes32) -> bytes32:
    return self._typed(self._separator(), structHash)


@view
@internal
def _id(config: ChannelConfig) -> bytes32:
    return self._digest(keccak256(abi_encode(CONFIG_TYPE, config)))


@view
@internal
def _refundDigest(channelId: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    return self._digest(keccak256(abi_encode(REFUND_TYPE, channelId, nonce, amount)))


@pure
@internal
def _entry(channelId: bytes32, maxClaimableAmount: uint128, totalClaimed: uint128) -> bytes32:
    return keccak256(abi_encode(ENTRY_TYPE, channelId, maxClaimableAmount, totalClaimed))


@pure
@internal
def _batch(separator: bytes32, hashes: DynArray[bytes32, MAX_ROWS]) -> bytes32:
    # An EIP-712 array is the hash of its elements without a length word.
    joined: Bytes[3264] = abi_encode(hashes)
    entries: bytes32 = keccak256(slice(joined, 64, 32 * len(hashes)))
    return self._typed(separator, keccak256(abi_encode(BATCH_TYPE, entries)))


@pure
@internal
def _signer(digest: bytes32, signature: Bytes[65]) -> address:
    if not (len(signature) == 65):
        raw_revert(method_id("InvalidSignature()"))
    r: uint256 = convert(slice(signature, 0, 32), uint256)
    s: uint256 = convert(slice(signature, 32, 32), uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if not ((v == 27 or v == 28) and s <= HALF_N):
        raw_revert(method_id("InvalidSignature()"))
    signer: address = ecrecover(digest, v, r, s)
    if signer == empty(address):
        raw_revert(method_id("InvalidSignature()"))
    return signer
