"""Stores an epoch's Merkle tree in pieces, so that a proof reads one piece a level instead of every receipt.

A piece is a run of 64 nodes of one level; its root is a node six levels up, where the next pieces begin. Runs start at
multiples of 64, so the node that RFC 6962 carries up stays in the last piece of each level. A piece of 64 nodes takes
about 5 KB; an epoch of 200 000 receipts has three levels of pieces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, insert, select

from channels.journal import merkle
from channels.receipts import leaf_node, root_above, siblings

PIECE_LEVELS = 6
PIECE_NODES = 2**PIECE_LEVELS


@dataclass(frozen=True, slots=True)
class Piece:
    """Nodes of one level in order; `numbers` are the lowest receipt numbers under each of them."""

    level: int
    numbers: tuple[int, ...]
    nodes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Path:
    """A leaf's node, its siblings from the bottom, and the root that they lead to."""

    node: bytes
    steps: tuple[bytes, ...]
    root: bytes


def pieces_of(leaves: Sequence[tuple[int, bytes]]) -> Iterator[Piece]:
    """The pieces over (receipt number, leaf) in order, from the bottom.

    Raises:
        ValueError: there are no leaves.
    """
    if not leaves:
        raise ValueError("an epoch has at least one receipt")
    level, row = 0, [(number, leaf_node(leaf)) for number, leaf in leaves]
    while True:
        above = []
        for start in range(0, len(row), PIECE_NODES):
            numbers, nodes = zip(*row[start : start + PIECE_NODES], strict=True)
            yield Piece(level, numbers, nodes)
            above.append((numbers[0], root_above(nodes)))
        if len(above) == 1:
            return
        level, row = level + PIECE_LEVELS, above


def path(pieces: Sequence[Piece], number: int) -> Path:
    """The path of receipt `number` through pieces, which may be all of its epoch or those above the receipt."""
    above = {piece.level: piece for piece in pieces if piece.numbers[0] <= number}
    node, root = b"", b""
    steps: tuple[bytes, ...] = ()
    for _, piece in sorted(above.items()):
        index = bisect_right(piece.numbers, number) - 1
        node = node or piece.nodes[index]
        steps += siblings(piece.nodes, index)
        root = root_above(piece.nodes)
    return Path(node, steps, root)


def load_pieces(conn: Connection, epoch: int, number: int) -> list[Piece]:
    """The stored pieces above receipt `number`, from the bottom; empty if the epoch's are not stored."""
    columns = merkle.c
    pieces: list[Piece] = []
    while True:
        inside = (columns.epoch == epoch) & (columns.level == len(pieces) * PIECE_LEVELS) & (columns.first <= number)
        row = conn.execute(select(merkle).where(inside).order_by(columns.first.desc()).limit(1)).one_or_none()
        if row is None:
            return pieces
        nodes = tuple(bytes.fromhex(node) for node in orjson.loads(row.nodes))
        pieces.append(Piece(row.level, tuple(orjson.loads(row.numbers)), nodes))


def store_pieces(conn: Connection, epoch: int, pieces: Sequence[Piece]) -> None:
    """Stores an epoch's pieces; does nothing where they are stored."""
    if conn.execute(select(merkle.c.epoch).where(merkle.c.epoch == epoch).limit(1)).one_or_none() is not None:
        return
    conn.execute(insert(merkle), [_columns(epoch, piece) for piece in pieces])


def _columns(epoch: int, piece: Piece) -> dict[str, object]:
    numbers = orjson.dumps(piece.numbers).decode()
    nodes = orjson.dumps([node.hex() for node in piece.nodes]).decode()
    return {"epoch": epoch, "level": piece.level, "first": piece.numbers[0], "numbers": numbers, "nodes": nodes}
