"""Runs the conformance suite in a process of its own for `leben dapp check`: prints one JSON line a step.

Whatever the author's code does to this process, its parent survives and reports it. The lines go to the original
standard output, and everything that the author's code prints is discarded.
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
    """Reads the request from the command line, as JSON."""
    request = json.loads(sys.argv[1])
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    limits = Limits(request["step_s"], request["memory_bytes"])
    import torch  # before the limit: the memory that torch maps is not the author's

    cuda = torch.cuda.is_available()
    sizes = Path("/proc/self/statm")
    if not cuda and sizes.exists():  # CUDA maps more address space than there is memory
        mapped = int(sizes.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + limits.memory_bytes,) * 2)
    for line in _outcomes(request, limits, request["device"] or ("cuda" if cuda else "cpu")):
        print(json.dumps(line), file=lines)
    lines.flush()
    os._exit(0)  # a step that hangs must not keep this process alive


def _outcomes(request: Json, limits: Limits, device: str) -> Iterator[Json]:
    try:
        dapp = _dapp(request)
    except Exception as error:  # an author's module may raise anything
        folder = Path(request["folder"]) if request.get("folder") else None
        cause = error.__cause__ or error
        at = raised(cause, folder=folder)
        yield {"step": "import", "rule": _rule(cause), "message": f"{type(cause).__name__}: {cause}", "place": at}
        return
    for outcome in examine(dapp, device, request["without"], limits):
        line: Json = {"step": outcome.step, "seconds": outcome.seconds, "peak_bytes": outcome.peak_bytes}
        if outcome.skipped:
            line["skipped"] = outcome.skipped
        if outcome.failure is not None:
            failure = outcome.failure
            line |= {"rule": failure.rule, "message": failure.message, "place": failure.place}
        yield line


def _rule(error: BaseException) -> str:
    """The rule of an import error: declarations are checked while the class is defined, so its module raises."""
    starts = {"shares ": "shares", "price: ": "price", "tensor ": "tensors"}
    rules = (rule for start, rule in starts.items() if isinstance(error, ValueError) and str(error).startswith(start))
    return next(rules, "import")


def _dapp(request: Json) -> DApp:
    if "value" not in request:
        return registry.load(request["name"])
    return Offer(request["name"], request["value"], Path(request["path"]), Path(request["folder"])).load()


if __name__ == "__main__":
    main()
