"""What is checked in beside the sources is what the compiler makes of them, and it is the interface of x402."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from x402.mechanisms.evm.batch_settlement.abi import BATCH_SETTLEMENT_ABI

from channels.evm.contracts import build


@pytest.mark.parametrize("name", build.NAMES)
def test_the_bytecode_can_be_made_again(name: str) -> None:
    checked_in = Path(build.__file__).with_name(f"{name}.json").read_text()
    assert checked_in == json.dumps(build.compiled(name), indent=1) + "\n", "python -m channels.evm.contracts.build"


def test_the_escrow_has_every_function_of_the_stock_package() -> None:
    def shape(entry: dict[str, object]) -> str:
        def kind(part: dict[str, object]) -> str:
            inner = part.get("components")
            if not isinstance(inner, list):
                return str(part["type"])
            return f"({','.join(map(kind, inner))}){str(part['type']).removeprefix('tuple')}"

        inputs = entry["inputs"]
        assert isinstance(inputs, list)
        return f"{entry['name']}({','.join(map(kind, inputs))})"

    ours = {shape(entry) for entry in build.built("ChannelEscrow").abi if entry["type"] in ("function", "event")}
    theirs = {shape(entry) for entry in BATCH_SETTLEMENT_ABI}
    assert theirs <= ours, theirs - ours


@pytest.mark.parametrize("name", build.NAMES)
def test_every_external_function_is_explained(name: str) -> None:
    source = Path(build.__file__).with_name(f"{name}.vy").read_text()
    parts = source.split("@external\n")[1:]
    assert parts and all("@notice" in part.split("@internal")[0].split("\n@")[0] for part in parts)
    assert "@dev Threats and what stops each" in source.split('"""')[1]
