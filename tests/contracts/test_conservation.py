"""In any order of steps: deposits = paid out + left, totals only grow, and nobody gets another's money."""

from __future__ import annotations

from eth_tester.exceptions import TransactionFailed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.protocol.digests import channel_id, refund_digest
from tests.contracts.conftest import AUTHORIZER, CHAIN, PAYER, RECEIVER, TOKEN, Chain, as_tuple, config, row
from tests.examples import examples

STEP = st.tuples(
    st.sampled_from(["deposit", "claim", "settle", "refund", "initiate", "finalize", "wait"]),
    st.integers(0, 1),
    st.integers(0, 1_500),
    st.integers(0, 1_500),
)


@settings(max_examples=examples(8), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=14))
def test_money_is_conserved(chain: Chain, steps: list[tuple[str, int, int, int]]) -> None:
    mark = chain.tester.take_snapshot()
    chain.fund(PAYER.address, 1_000_000)
    payer, escrow = chain.own(PAYER), chain.escrow.functions
    deposited, before, nonce = 0, {0: (0, 0), 1: (0, 0)}, 1
    for verb, number, amount, other in steps:
        channel = config(number)
        name = channel_id(CHAIN, channel)
        try:
            if verb == "deposit":
                nonce += 1
                chain.deposit(channel, amount, salt=nonce)
                deposited += amount
            elif verb == "claim":
                chain.claim([row(channel, max(amount, other), amount), row(config(1 - number), other, other)])
            elif verb == "settle":
                chain.send(escrow.settle(RECEIVER.address, TOKEN))
            elif verb == "refund":
                at = escrow.refundNonce(bytes.fromhex(name[2:])).call()
                signature = AUTHORIZER.sign(refund_digest(CHAIN, name, at, amount))
                chain.send(escrow.refundWithSignature(as_tuple(channel), amount, at, signature))
            elif verb == "initiate":
                chain.send(escrow.initiateWithdraw(as_tuple(channel), amount), payer)
            elif verb == "finalize":
                chain.send(escrow.finalizeWithdraw(as_tuple(channel)), payer)
            else:
                chain.later(901)
        except TransactionFailed:
            pass
        now = {which: chain.channel(config(which)) for which in (0, 1)}
        claimed, settled = escrow.receivers(RECEIVER.address, TOKEN).call()
        left = sum(balance - total for balance, total in now.values())
        assert all(0 <= total <= balance for balance, total in now.values())
        assert all(now[which][1] >= before[which][1] for which in now), "a claimed total never falls"
        assert claimed == sum(total for _, total in now.values()) and settled <= claimed
        assert chain.held(chain.escrow.address) == left + claimed - settled
        assert chain.held(RECEIVER.address) == settled
        assert chain.held(PAYER.address) + chain.held(RECEIVER.address) + left + claimed - settled == 1_000_000
        before = now
    chain.tester.revert_to_snapshot(mark)
