"""Finds any change in a receipt file offline, with the mesh's address and the epoch's root alone."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.errors import ChannelError
from channels.protocol.signer import Signer
from channels.receipts import ReceiptFile, SignedReceipt, check_sequence
from channels.settlement.epochs import Epochs
from tests.conftest import LEBEN
from tests.examples import examples

MESH, STRANGER = Signer(b"\x21" * 32), Signer(b"\x22" * 32)


def file_of(world: Any, call_id: str) -> ReceiptFile:
    stored = world.journal.stored(call_id)
    signed = SignedReceipt.sign(stored.receipt, world.chain_id, MESH)
    proof = Epochs(world.journal).proof(call_id, world.chain_id)
    return ReceiptFile(signed, world.chain_id, stored.number, stored.before, stored.after, proof)


@pytest.fixture(scope="module")
def settled(make_world: Any) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Five receipts of one channel, four of them settled under the root that is given."""
    world = make_world()
    world.open_channel(1_000)
    world.charge(10, 0, 7, 3)
    root = world.settler().settle(world.token).root
    world.charge(5)
    yield [file_of(world, receipt.call_id).to_json() for receipt in world.journal.receipts()], root
    world.close()


def sound(raw: Any, mesh: str = MESH.address, root: str | None = None) -> list[bool | None]:
    return [check.sound for check in ReceiptFile.from_json(raw).check(mesh, root)]


def test_an_honest_file_holds(settled: Any) -> None:
    files, root = settled
    for raw in files[:4]:
        assert ReceiptFile.from_json(json.loads(json.dumps(raw))).to_json() == raw
        assert sound(raw, root=root) == [True, True, True]
        assert sound(raw, root=None) == [True, True, None]
        assert sound(raw, root="0x" + "00" * 32) == [True, True, False]
        assert sound(raw, root="nonsense") == [True, True, False]
        assert sound(raw, STRANGER.address, root) == [False, True, True]
    assert sound(files[4]) == [True, True, None] and sound(files[4], root=root) == [True, True, False]


def leaves(raw: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    if not isinstance(raw, dict | list):
        yield path
    for name, value in items:
        yield from leaves(value, (*path, name))


UNCHECKED = {("receipt",), ("proof", "epoch"), ("proof", "root"), ("chain", "number")}
"""For people: no check uses them."""


@settings(max_examples=examples(200))
@given(st.data())
def test_any_change_is_found(settled: Any, data: st.DataObject) -> None:
    files, root = settled
    raw = copy.deepcopy(data.draw(st.sampled_from(files[:4])))
    path = data.draw(st.sampled_from(sorted(set(leaves(raw)) - UNCHECKED, key=str)))
    holder = raw
    for name in path[:-1]:
        holder = holder[name]
    value = holder[path[-1]]
    if isinstance(value, int):
        holder[path[-1]] = value + data.draw(st.sampled_from([-1, 1, 2**32]))
    else:
        place = data.draw(st.integers(0, len(value) - 1))
        holder[path[-1]] = value[:place] + data.draw(st.sampled_from("0123456789abcdefx ")) + value[place + 1 :]
    if holder[path[-1]] == value or (path == ("signature",) and holder[path[-1]].lower() == value):
        return
    with suppress(ChannelError):
        assert False in sound(raw, root=root), path


@pytest.mark.parametrize("name", ["chainId", "chain", "signature", "shares", "seq"])
@pytest.mark.parametrize("value", [None, "x", {}, [], 1.5, {"number": 1}])
def test_what_is_no_receipt_file_is_refused(settled: Any, name: str, value: Any) -> None:
    with pytest.raises(ChannelError):
        ReceiptFile.from_json(settled[0][0] | {name: value})
    for raw in (None, [], "text", 3):
        with pytest.raises(ChannelError):
            ReceiptFile.from_json(raw)


@pytest.mark.parametrize("proof", [1, {}, {"epoch": "1"}, {"epoch": 1, "steps": ["0x12"]}, {"epoch": 1, "steps": [5]}])
def test_what_is_no_proof_is_refused(settled: Any, proof: Any) -> None:
    with pytest.raises(ChannelError):
        ReceiptFile.from_json(settled[0][0] | {"proof": proof})


def test_a_charge_hidden_between_receipts_is_found(settled: Any) -> None:
    files = [ReceiptFile.from_json(raw) for raw in settled[0]]
    assert [check.sound for check in check_sequence(files)] == [True] * 4
    assert [check.sound for check in check_sequence(list(reversed(files)))] == [True] * 4
    (gap,) = check_sequence([files[0], files[3]])
    assert gap.sound is None and gap.why == "2 between them are not here"
    assert [check.sound for check in check_sequence([files[0], files[0]])] == [False]


def verify(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LEBEN, "receipt", "verify", *words], capture_output=True, text=True, timeout=60)


def test_the_command_checks_files_offline(settled: Any, tmp_path: Path) -> None:
    files, root = settled
    paths = []
    for number, raw in enumerate(files[:2]):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(raw))
    names = [str(path) for path in paths]
    good = verify(*names, "--mesh", MESH.address, "--root", root)
    assert good.returncode == 0 and good.stdout.count("holds") == 7, good.stdout + good.stderr
    bad = verify(*names, "--mesh", STRANGER.address, "--root", root)
    assert bad.returncode == 1 and "WRONG" in bad.stdout and "not a receipt of that mesh" in bad.stderr
    paths[0].write_text("{")
    broken = verify(names[0], "--mesh", MESH.address)
    assert broken.returncode == 1 and "is not JSON" in broken.stderr and "Traceback" not in broken.stderr
