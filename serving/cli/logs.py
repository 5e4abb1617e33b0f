"""Collects everything that a mesh recorded of one call: `leben logs`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated
from urllib.parse import urlsplit

import orjson
import typer
from rich.markup import escape

from channels.journal import Journal
from channels.protocol import HASH
from channels.settlement import Epochs
from serving.cli.arguments import HERE, Data, read_settings
from serving.cli.console import err, fail
from serving.cli.node_logs import elsewhere, in_log
from serving.cli.wallet import has_ledger
from serving.cluster import data_folder
from serving.config import LOOPBACK, Settings
from serving.telemetry import BrokenChain


def logs(
    call: Annotated[str, typer.Argument(help="The `receipt` of a receipt or of a line of the audit log.")],
    data: Data = HERE,
) -> None:
    """Print the records of one call as JSON lines: audit logs, receipt and settlement."""
    if not HASH.fullmatch(call):
        fail("a call's id is 0x and 64 hex digits in lower case: the `receipt` of its receipt")
    settings = read_settings(data)
    if not settings.home.is_dir():
        fail(f"there is no mesh in {settings.home}: name its folder with --data")
    try:
        lines = in_log(settings, call)
    except BrokenChain as error:
        fail(f"{error}; leben audit verify says more")
    for line in lines:
        _print("audit", line)
    count = len(lines) + _on_other_machines(settings, call)
    count += _in_journal(settings, call) if has_ledger(settings) else 0
    if not count:
        fail("nothing is known of this call here: a refused call has no id, and a new one is recorded in a moment")


def _in_journal(settings: Settings, call: str) -> int:
    """Prints a call's receipt and its settlement, and returns the number of receipts."""
    with closing(Journal.open(settings.sql_url(), create=False)) as journal:
        stored = journal.stored(call)
        if stored is None:
            return 0
        _print("receipt", {"number": stored.number, **stored.receipt.to_json()})
        epoch = Epochs(journal).of(call)
        _print("settlement", {"epoch": epoch.number, "status": epoch.status, "root": epoch.root} if epoch else {})
        return 1


def _on_other_machines(settings: Settings, call: str) -> int:
    """Prints the audit lines of the mesh's other machines, and returns their number."""
    facts = data_folder.running(settings)
    if facts is None or urlsplit(facts["url"]).hostname == str(LOOPBACK):  # no machine can have joined it
        return 0
    lines, silent = elsewhere(settings, facts["ray"], call)
    for address, line in lines:
        _print("audit", {"node": address, **line})
    for why in silent:
        err.print(f"[yellow]leben:[/] not asked: {escape(why)}", highlight=False, soft_wrap=True)
    return len(lines)


def _print(source: str, facts: dict[str, object]) -> None:
    print(orjson.dumps({"from": source, **facts}).decode())
