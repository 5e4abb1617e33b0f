"""Compiles the contracts and writes each one's ABI and bytecode beside its source.

Run it as `python -m channels.evm.contracts.build`.
Reproducible: the same compiler and options give the same bytes, and a test compiles again to see it. Reading what was
built needs no compiler.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

NAMES = ("ChannelEscrow", "ERC3009Collector", "Split", "DevToken")
COMPILER = "0.4.3"


@dataclass(frozen=True, slots=True)
class Contract:
    """A built contract: its interface, the code that makes it and the code that stands on the chain, as hex."""

    name: str
    abi: list[dict[str, Any]]
    creation: str
    runtime: str


@cache
def built(name: str) -> Contract:
    """A contract as it is checked in."""
    code = json.loads(files("channels.evm.contracts").joinpath(f"{name}.json").read_text())
    return Contract(name, code["abi"], code["creation"], code["runtime"])


def compiled(name: str) -> dict[str, Any]:
    """Compiles a contract from its source.

    Raises:
        RuntimeError: another compiler than the one that the checked-in code was made with.
    """
    import vyper
    from vyper.compiler import compile_code
    from vyper.compiler.settings import OptimizationLevel, Settings

    if vyper.__version__ != COMPILER:
        raise RuntimeError(f"the contracts are built with vyper {COMPILER}, not {vyper.__version__}")
    source = files("channels.evm.contracts").joinpath(f"{name}.vy").read_text()
    output = compile_code(
        source,
        output_formats=["abi", "bytecode", "bytecode_runtime"],
        settings=Settings(optimize=OptimizationLevel.GAS, evm_version="cancun"),
        no_bytecode_metadata=True,
    )
    return {
        "compiler": f"vyper {COMPILER}, -O gas, cancun",
        "abi": output["abi"],
        "creation": output["bytecode"],
        "runtime": output["bytecode_runtime"],
    }


def main() -> None:
    """Writes `NAME.json` for every contract."""
    for name in NAMES:
        path = Path(__file__).with_name(f"{name}.json")
        path.write_text(json.dumps(compiled(name), indent=1) + "\n")
        print(f"{path.name}: {(len(built(name).runtime) - 2) // 2} bytes on the chain")


if __name__ == "__main__":
    main()
