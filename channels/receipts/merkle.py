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
"""A step of a proof: a side byte (0 left, 1 right) and a sibling's 32 bytes."""


def leaf_node(leaf: bytes) -> bytes:
    """The node of a leaf."""
    return keccak(LEAF + leaf)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaves in order.

    Raises:
        ValueError: there are no leaves.
    """
    return root_above([leaf_node(leaf) for leaf in leaves])


def root_above(nodes: Sequence[bytes]) -> bytes:
    """The root over nodes of one level, in order.

    Raises:
        ValueError: there are no nodes.
    """
    if not nodes:
        raise ValueError("a Merkle tree has at least one leaf")
    while len(nodes) > 1:
        nodes = _above(nodes)
    return nodes[0]


def merkle_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings of leaf `index`, from the bottom."""
    return siblings([leaf_node(leaf) for leaf in leaves], index)


def siblings(nodes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings of node `index` of one level, from the bottom, as steps of a side byte and 32 bytes.

    Raises:
        ValueError: there is no such node.
    """
    if not 0 <= index < len(nodes):
        raise ValueError("no such leaf")
    steps = []
    while len(nodes) > 1:
        sibling = index ^ 1
        if sibling < len(nodes):
            steps.append((LEFT if sibling < index else RIGHT) + nodes[sibling])
        nodes, index = _above(nodes), index // 2
    return tuple(steps)


def verify_proof(leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """True if the proof leads from the leaf to the root."""
    node = leaf_node(leaf)
    for step in proof:
        if len(step) != STEP_BYTES or step[:1] not in (LEFT, RIGHT):
            return False
        node = keccak(INNER + step[1:] + node) if step[:1] == LEFT else keccak(INNER + node + step[1:])
    return node == root


def _above(nodes: Sequence[bytes]) -> list[bytes]:
    pairs = [keccak(INNER + nodes[place] + nodes[place + 1]) for place in range(0, len(nodes) - 1, 2)]
    return pairs + list(nodes[len(pairs) * 2 :])
