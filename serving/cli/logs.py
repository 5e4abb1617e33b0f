"""`leben logs`: one call, wherever the mesh has written of it."""

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
from serving.cli.console import HERE, Data, err, fail
from serving.cli.node_logs import elsewhere, in_log
from serving.cluster import data_folder
from serving.config import LOOPBACK, Settings
from serving.telemetry import BrokenChain


def logs(
    call: Annotated[str, typer.Argument(help="A receipt's `receipt`, or `receipt` in a line of the audit log.")],
    data: Data = HERE,
) -> None:
    """Print what is known of one call, one JSON object a line: from all audit logs, the books and its settlement."""
    if not HASH.fullmatch(call):
        fail("a call's id is 0x and 64 hex digits in lower case: the `receipt` of its receipt")
    settings = Settings(data=data)
    if not settings.home.is_dir():
        fail(f"there is no mesh in {settings.home}: name its folder with --data")
    try:
        written = in_log(settings, call)
    except BrokenChain as error:
        fail(f"{error}; leben audit verify says more")
    for line in written:
        _tell("audit", line)
    found = len(written) + _elsewhere(settings, call)
    with closing(Journal.open(settings.sql_url())) as journal:
        stored = journal.stored(call)
        if stored is not None:
            found += 1
            _tell("receipt", {"number": stored.number, **stored.receipt.to_json()})
            epoch = Epochs(journal).of(call)
            _tell("settlement", {"epoch": epoch.number, "status": epoch.status, "root": epoch.root} if epoch else {})
    if not found:
        fail("nothing is known of this call here: a refused call has no id, and a new one is in the books in a moment")


def _elsewhere(settings: Settings, call: str) -> int:
    """Tells what the other machines of the mesh have written; how many lines that were."""
    facts = data_folder.running(settings)
    if facts is None or urlsplit(facts["url"]).hostname == str(LOOPBACK):  # nobody can have joined it
        return 0
    told, silent = elsewhere(settings, facts["ray"], call)
    for address, line in told:
        _tell("audit", {"node": address, **line})
    for why in silent:
        err.print(f"[yellow]leben:[/] not asked: {escape(why)}", highlight=False, soft_wrap=True)
    return len(told)


def _tell(place: str, facts: dict[str, object]) -> None:
    print(orjson.dumps({"from": place, **facts}).decode())
