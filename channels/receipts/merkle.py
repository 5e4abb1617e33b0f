"""Builds Merkle trees as RFC 6962 does, with keccak, and makes and checks proofs of inclusion.

Leaves and inner nodes are hashed with different prefixes, so no inner node passes for a leaf. An odd node is carried
up, never doubled: lists [a, b, c] and [a, b, c, c] have different roots (CVE-2012-2459).
"""

from __future__ import annotations

from collections.abc import Sequence

from channels.protocol import keccak

LEAF, INNER = b"\x00", b"\x01"
LEFT, RIGHT = b"\x00", b"\x01"
STEP_BYTES = 33
"""A step of a proof: a side byte (0 left, 1 right) and a sibling's 32 bytes."""


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over 32-byte leaves in order.

    Raises:
        ValueError: there are no leaves; an empty epoch is never published.
    """
    if not leaves:
        raise ValueError("a Merkle tree has at least one leaf")
    level = [keccak(LEAF + leaf) for leaf in leaves]
    while len(level) > 1:
        level = _above(level)
    return level[0]


def merkle_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings of leaf `index`, from the bottom, as steps of a side byte and 32 bytes.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise ValueError("no such leaf")
    proof = []
    level = [keccak(LEAF + leaf) for leaf in leaves]
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            proof.append((LEFT if sibling < index else RIGHT) + level[sibling])
        level, index = _above(level), index // 2
    return tuple(proof)


def verify_proof(leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """True if the proof leads from the leaf to the root."""
    node = keccak(LEAF + leaf)
    for step in proof:
        if len(step) != STEP_BYTES or step[:1] not in (LEFT, RIGHT):
            return False
        node = keccak(INNER + step[1:] + node) if step[:1] == LEFT else keccak(INNER + node + step[1:])
    return node == root


def _above(level: list[bytes]) -> list[bytes]:
    pairs = [keccak(INNER + level[place] + level[place + 1]) for place in range(0, len(level) - 1, 2)]
    return pairs + level[len(pairs) * 2 :]
