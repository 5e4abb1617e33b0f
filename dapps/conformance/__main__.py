"""The conformance suite in a process of its own: prints one JSON line a step, for `leben dapp check`.

Whatever the author's code does to this process, the one that started it lives on and says so. What it prints never
mixes with the lines: they go to the standard output as it was at the start, everything else to nowhere.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dapps.api import DApp
from dapps.conformance.failure import raised
from dapps.conformance.suite import Limits, examine
from dapps.packages import Offer, registry

Json = dict[str, Any]


def main() -> None:
    """Reads what to check from the command line, as JSON."""
    asked = json.loads(sys.argv[1])
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    limits = Limits(asked["step_s"], asked["memory_bytes"])
    import torch  # before the limit: what torch maps for itself is not the author's

    cuda = torch.cuda.is_available()
    sizes = Path("/proc/self/statm")
    if not cuda and sizes.exists():  # CUDA maps more address space than there is memory
        mapped = int(sizes.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + limits.memory_bytes,) * 2)
    for line in _outcomes(asked, limits, asked["device"] or ("cuda" if cuda else "cpu")):
        print(json.dumps(line), file=lines)
    lines.flush()
    os._exit(0)  # a step that hangs must not keep this process


def _outcomes(asked: Json, limits: Limits, device: str) -> Iterator[Json]:
    try:
        dapp = _dapp(asked)
    except Exception as error:  # an author's module may raise anything
        folder = Path(asked["folder"]) if asked.get("folder") else None
        cause = error.__cause__ or error
        at = raised(cause, folder=folder)
        yield {"step": "import", "rule": _rule(cause), "message": f"{type(cause).__name__}: {cause}", "place": at}
        return
    for each in examine(dapp, device, asked["without"], limits):
        line: Json = {"step": each.step, "seconds": each.seconds, "peak_bytes": each.peak_bytes}
        if each.skipped:
            line["skipped"] = each.skipped
        if each.failure is not None:
            failure = each.failure
            line |= {"rule": failure.rule, "message": failure.message, "place": failure.place}
        yield line


def _rule(error: BaseException) -> str:
    """What a class declares is checked as it is defined, so a wrong share or price shows as an error of its module."""
    starts = {"shares ": "shares", "price: ": "price", "tensor ": "tensors"}
    known = (rule for start, rule in starts.items() if isinstance(error, ValueError) and str(error).startswith(start))
    return next(known, "import")


def _dapp(asked: Json) -> DApp:
    if "value" not in asked:
        return registry.load(asked["name"])
    return Offer(asked["name"], asked["value"], Path(asked["path"]), Path(asked["folder"])).load()


if __name__ == "__main__":
    main()
