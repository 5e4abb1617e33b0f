"""What the contracts cost: gas of whole transactions on py-evm (Prague rules), beside the published figures.

The published ones are of x402's own contract (solc 0.8.28, 200 runs) with a token that checks a real signature; slots
are as in steady state unless the row says otherwise. `make bench` runs it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))
from channels.protocol.digests import channel_id, refund_digest
from tests.contracts.conftest import (
    AUTHORIZER,
    CHAIN,
    OWNER,
    PAYER,
    RECEIVER,
    TOKEN,
    as_tuple,
    config,
    fresh,
    row,
)

CALLS = 1_000


def main() -> None:
    """Measures and prints the table."""
    chain, channels = fresh(), [config(number) for number in range(100)]
    table = Table("transaction", "gas", "a channel", "published", "ratio", "bar")

    def show(what: str, gas: int, rows: int = 1, published: int = 0, bar: str = "") -> int:
        ratio = f"{gas / published:.2f}" if published else ""
        table.add_row(
            what, f"{gas:,}", f"{gas // rows:,}" if rows > 1 else "", f"{published:,}" if published else "", ratio, bar
        )
        return gas

    chain.fund(PAYER.address, 10**12)
    deposits = [chain.deposit(channel, 10**6, salt=number + 1)["gasUsed"] for number, channel in enumerate(channels)]
    show("deposit, the first of all", deposits[0])
    deposit = show("deposit, a new channel", deposits[50], published=116_916, bar="<= 1.00")
    show("deposit, a top-up", chain.deposit(channels[0], 10**6, salt=1_000)["gasUsed"], published=95_960)
    chain.claim([row(channels[99], 10, 5)])
    claims = {}
    for rows, published, bar in ((1, 60_084, "<= 1.05"), (10, 270_292, ""), (100, 2_388_130, "<= 0.80")):
        for total in (5_000, 10_000):  # the second as in steady state: no zero bytes are left in the totals
            batch = [row(channel, 2 * total + rows, total + rows) for channel in channels[:rows]]
            gas = chain.claim(batch)["gasUsed"]
        claims[rows] = show(f"claim of {rows}", gas, rows, published, bar)
        show(f"the same claim again, of {rows}", chain.claim(batch)["gasUsed"], rows)
    settle = chain.escrow.functions.settle(RECEIVER.address, TOKEN)
    show("settle, to a receiver that held none", chain.send(settle)["gasUsed"], published=62_543)
    chain.claim([row(channels[0], 90_000, 80_000)])
    settled = show("settle", chain.send(settle)["gasUsed"], published=45_443)
    show("settle, nothing to pay", chain.send(settle)["gasUsed"], published=25_024)
    name = channel_id(CHAIN, channels[1])
    refunds = []
    for nonce in (0, 1):
        signature = AUTHORIZER.sign(refund_digest(CHAIN, name, nonce, 100))
        call = chain.escrow.functions.refundWithSignature(as_tuple(channels[1]), 100, nonce, signature)
        refunds.append(chain.send(call)["gasUsed"])
    show("refund, the first of a channel", refunds[0], published=83_793)
    show("refund", refunds[1], published=66_717)
    payer = chain.own(PAYER)
    begin = chain.escrow.functions.initiateWithdraw(as_tuple(channels[2]), 100)
    show("initiate withdrawal", chain.send(begin, payer)["gasUsed"], published=52_449)
    chain.later(901)
    end = chain.escrow.functions.finalizeWithdraw(as_tuple(channels[2]))
    show("finalize withdrawal", chain.send(end, payer)["gasUsed"], published=49_737)
    receiver = chain.own(RECEIVER)
    chain.send(chain.token.functions.approve(chain.split.address, 2**255), receiver)
    for epoch in (1, 2):
        credits = [(OWNER.address, carrier, b"chdr".ljust(32, b"\0"), 50) for carrier in range(4)]
        gas = chain.send(chain.split.functions.split(TOKEN, epoch, bytes([epoch]) * 32, credits), receiver)["gasUsed"]
    show("split of an epoch among four credits", gas)
    gas_per_call = (deposit + claims[100] // 100 + settled // 100) / CALLS
    table.add_row(f"a call, of {CALLS} on one channel", f"{gas_per_call:.0f}", "", "", "", "<= 150")
    Console().print(table)


if __name__ == "__main__":
    main()
