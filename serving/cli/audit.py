"""Checks and exports the audit log, one line for every call: `leben audit`."""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime
from typing import Annotated

import orjson
import typer

from serving.cli.arguments import HERE, Data, read_settings
from serving.cli.console import fail
from serving.telemetry import BrokenChain, chains, read

COLUMNS = (
    *("at_ms", "dapp", "route", "status", "code", "ms", "in", "out", "payer", "channel", "charged", "moved"),
    *("transaction", "receipt", "seq", "dropped", "missed", "n", "prev", "hash"),
)


def audit_verify(data: Data = HERE) -> None:
    """Recompute every hash chain, and name the first line that was changed."""
    folder = read_settings(data).audit
    files = chains(folder)
    if not files:
        fail(f"there is no audit log in {folder}")
    for chain in files:
        count, head = 0, ""
        try:
            for line in read(chain):
                count, head = count + 1, line["hash"]
        except BrokenChain as error:
            fail(str(error))
        print(f"{chain.stem}: {count} lines, the last is {head}")


def audit_export(
    data: Data = HERE,
    begins: Annotated[str, typer.Option("--from", help="ISO 8601 date or time, UTC.")] = "",
    ends: Annotated[str, typer.Option("--to", help="ISO 8601 date or time, UTC; not included.")] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of JSON lines.")] = False,
) -> None:
    """Print the lines as JSON lines, each checked first."""
    first, last = _ms(begins, 0), _ms(ends, 2**63)
    table = csv.DictWriter(sys.stdout, COLUMNS, restval="", extrasaction="ignore")
    if as_csv:
        table.writeheader()
    try:
        for line in (line for chain in chains(read_settings(data).audit) for line in read(chain)):
            if not first <= line["at_ms"] < last:
                continue
            if as_csv:
                table.writerow(line)
            else:
                print(orjson.dumps(line).decode())
    except BrokenChain as error:
        fail(str(error))


def _ms(raw: str, default: int) -> int:
    if not raw:
        return default
    try:
        when = datetime.fromisoformat(raw)
    except ValueError:
        fail("times are ISO 8601, like 2026-11-24 or 2026-11-24T08:00")
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
