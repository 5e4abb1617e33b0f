"""The filter of system calls decides as libseccomp's own program for the same rules (`tests/vectors/seccomp.py`)."""

from __future__ import annotations

import json
import struct
from itertools import product
from pathlib import Path

import pytest

from serving.isolation.landlock import ARCHES, seccomp_filter

VECTORS: dict[str, str] = json.loads((Path(__file__).parents[1] / "vectors" / "seccomp.json").read_text())
I386 = 0x40000003
X32 = 0x40000000
NUMBERS = [*range(700), X32, X32 + 1, X32 + 41, X32 + 520, 0x7FFFFFFF]
FLAGS = [
    0,
    1,
    2,
    3,
    5,
    0x802,
    0x80002,
    0x80001,
    0x10000,
    0x3D0F00,
    0x1200011,
    1 << 32,
    (1 << 32) | 0x10000,
    (1 << 64) - 1,
]
LOAD, AND, JUMP, EQUAL, GREATER, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06


def decide(program: bytes, number: int, architecture: int, arguments: tuple[int, ...]) -> int:
    """Runs classic BPF on a `struct seccomp_data`, as the kernel does."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    lines, at, accumulator = list(struct.iter_unpack("<HBBI", program)), 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        if code == RETURN:
            return int(value)
        if code == LOAD:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == AND:
            accumulator &= value
        elif code == JUMP:
            at += value
        else:
            holds = {
                EQUAL: accumulator == value,
                GREATER: accumulator > value,
                AT_LEAST: accumulator >= value,
                ANY_BIT: bool(accumulator & value),
            }[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", sorted(ARCHES))
def test_every_call_is_decided_as_libseccomp_decides_it(machine: str) -> None:
    ours, theirs = seccomp_filter(machine), bytes.fromhex(VECTORS[machine])
    assert len(ours) % 8 == 0 and len(ours) // 8 <= 4096
    native, decisions = ARCHES[machine][0], set()
    for number, architecture, flags in product(NUMBERS, (native, I386), FLAGS):
        if machine == "aarch64" and number >= X32 and architecture == native:
            continue  # x32 is an ABI of x86-64; the numbers name no call here
        for arguments in ((flags, 0), (0, flags)):
            arguments = (*arguments, 0, 0, 0, 0)
            decision = decide(ours, number, architecture, arguments)
            assert decision == decide(theirs, number, architecture, arguments), (number, architecture, hex(flags))
            decisions.add(decision)
    assert decisions == {0x7FFF0000, 0x80000000, 0x00050001, 0x00050026}
