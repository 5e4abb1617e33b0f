"""What settling costs per channel, from 100 to 10 000 channels in one run: it should be flat.

python tests/benchmarks/settlement.py [--channels 100 1000 10000] [--url postgresql+psycopg://…]; SQLite by default.
Each channel has its own payer's key and three receipts. Prints the time of draining them, of settling them, and per
channel; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from channels.journal.journal import Journal
from channels.ledger.sql_ledger import SqlLedger
from channels.protocol.digests import Domain, channel_id, deposit_digest, deposit_nonce, voucher_digest
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig, Deposit, Voucher
from channels.receipts import split_charge
from channels.settlement.settler import SettlePolicy, Settler

MESH, RECEIVER = Signer.generate(), Signer.generate().address
OWNERS = [(name, Signer.generate().address, 2_500) for name in ("knowledge", "data", "compute", "operator")]
RECEIPTS, PRICE, PAGE = 3, 250, 500
DIGEST = "0x" + "11" * 32


def opened(ledger: SqlLedger, journal: Journal, token: int) -> tuple[str, Signer]:
    """A funded channel of a new payer."""
    payer, terms = Signer.generate(), ledger.terms
    config = ChannelConfig(payer.address, payer.address, RECEIVER, MESH.address, terms.asset, 900, DIGEST)
    name = channel_id(terms.chain_id, config)
    domain = Domain.of(terms.asset_name, terms.asset_version, terms.chain_id, terms.asset)
    digest = deposit_digest(domain, payer.address, 10_000, 0, 2**40, deposit_nonce(name, DIGEST))
    ledger.fund(payer.address, 10_000)
    journal.remember_channel(config, name, token)
    ledger.deposit(config, Deposit(10_000, 0, 2**40, DIGEST, payer.sign(digest)))
    return name, payer


def charges(number: int, name: str, payer: Signer, chain_id: int) -> list[tuple[str, dict[str, str]]]:
    """What the store would journal of one channel's calls."""
    total = RECEIPTS * PRICE
    voucher = Voucher(name, total, payer.sign(voucher_digest(chain_id, name, total)))
    shares = [[part.carrier, part.owner, part.amount] for part in split_charge(PRICE, OWNERS)]
    fixed = {"dapp": "chdr", "version": "1", "model": DIGEST, "request": DIGEST, "result": DIGEST, "units": 1}
    body = json.dumps(fixed | {"shares": shares})
    entries = []
    for seq in range(1, RECEIPTS + 1):
        call = f"0x{number * RECEIPTS + seq:064x}"
        entry = {"channel": name, "incarnation": "1", "seq": str(seq), "call": call, "key": call}
        entry |= {"before": str((seq - 1) * PRICE), "after": str(seq * PRICE), "amount": str(PRICE), "at_ms": "1"}
        proof = {"proof_max": str(total), "proof_sig": voucher.signature.hex(), "digest": DIGEST, "body": body}
        entries.append((f"{number * RECEIPTS + seq}-0", entry | proof))
    return entries


def measure(url: str, count: int, progress: Progress) -> tuple[float, float]:
    """Seconds to drain and to settle `count` channels on an empty ledger."""
    ledger, journal = SqlLedger.open(url), Journal.open(url)
    token = journal.acquire("benchmark")
    bar = progress.add_task(f"{count} channels: opening", total=count)
    entries = []
    for number in range(count):
        entries += charges(number, *opened(ledger, journal, token), ledger.terms.chain_id)
        progress.advance(bar)
    began = time.perf_counter()
    for place in range(0, len(entries), PAGE):
        journal.append(0, entries[place : place + PAGE], token)
    drained_s = time.perf_counter() - began
    bar = progress.add_task(f"{count} channels: settling", total=count)
    settler = Settler(journal, ledger, MESH, SettlePolicy(), time.time)
    began = time.perf_counter()
    while (step := settler.settle(token)).epoch is not None:
        progress.advance(bar, len(step.channels))
    settled_s = time.perf_counter() - began
    if ledger.earnings(OWNERS[0][1]) != count * sum(part.amount for part in split_charge(PRICE, OWNERS)[:1]) * RECEIPTS:
        raise SystemExit("the owners were not paid what was charged")
    ledger.close()
    journal.close()
    return drained_s, settled_s


def main() -> None:
    """Measures each count and prints a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--channels", type=int, nargs="+", default=[100, 1_000, 10_000])
    options.add_argument("--url", default="", help="an EMPTY database, for one count; SQLite by default")
    words = options.parse_args()
    table = Table("channels", "drain s", "settle s", "ms a channel", "relative", title="settling, three receipts each")
    first = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=Console(stderr=True)) as progress:
        for count in words.channels:
            drained_s, settled_s = measure(words.url or f"sqlite:///{Path(folder) / f'{count}.db'}", count, progress)
            each_ms = settled_s / count * 1000
            first = first or each_ms
            table.add_row(
                str(count), f"{drained_s:.2f}", f"{settled_s:.2f}", f"{each_ms:.2f}", f"{each_ms / first:.2f}x"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
