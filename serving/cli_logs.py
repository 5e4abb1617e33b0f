"""`leben logs`: one call, wherever the mesh has written of it. Next: `serving/audit.py`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import orjson
import typer

from channels.epochs import Epochs
from channels.journal import Journal
from channels.x402 import HASH
from serving.audit_log import BrokenChain, chains, read
from serving.console import HERE, Data, fail
from serving.settings import Settings


def logs(
    call: Annotated[str, typer.Argument(help="A receipt's `receipt`, or `receipt` in a line of the audit log.")],
    data: Data = HERE,
) -> None:
    """Print what is known of one call, a JSON object a line: from the audit log, the books and its settlement."""
    if not HASH.fullmatch(call):
        fail("a call's id is 0x and 64 hex digits in lower case: the `receipt` of its receipt")
    settings = Settings(data=data)
    if not settings.home.is_dir():
        fail(f"there is no mesh in {settings.home}: name its folder with --data")
    found = 0
    try:
        for line in (line for chain in chains(settings.audit) for line in read(chain)):
            if line.get("receipt") == call:
                found += 1
                _tell("audit", line)
    except BrokenChain as error:
        fail(f"{error}; leben audit verify says more")
    with closing(Journal.open(settings.sql_url())) as journal:
        stored = journal.stored(call)
        if stored is not None:
            found += 1
            _tell("receipt", {"number": stored.number, **stored.receipt.to_json()})
            epoch = Epochs(journal).of(call)
            _tell("settlement", {"epoch": epoch.number, "status": epoch.status, "root": epoch.root} if epoch else {})
    if not found:
        fail("nothing is known of this call here: a refused call has no id, and a new one is in the books in a moment")


def _tell(place: str, facts: dict[str, object]) -> None:
    print(orjson.dumps({"from": place, **facts}).decode())
