"""Stored Merkle levels: the same proofs as over all leaves, from a few rows; a changed row proves nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, text

from channels.journal.journal import JournalError
from channels.journal.tables import merkle
from channels.protocol.keccak import keccak
from channels.receipts.merkle import leaf_node, merkle_proof, merkle_root, verify_proof
from channels.settlement.epochs import Epochs
from channels.settlement.merkle_pieces import PIECE_NODES, Path, path, pieces_of


def leaves_of(count: int, step: int) -> list[tuple[int, bytes]]:
    return [(7 + place * step, keccak(place.to_bytes(4, "big"))) for place in range(count)]


@given(st.integers(1, 3 * PIECE_NODES + 5), st.integers(1, 9), st.data())
def test_pieces_lead_where_the_whole_tree_leads(count: int, step: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    numbered = leaves_of(count, step)
    leaves = [leaf for _, leaf in numbered]
    expected = Path(leaf_node(leaves[index]), merkle_proof(leaves, index), merkle_root(leaves))
    assert path(list(pieces_of(numbered)), numbered[index][0]) == expected


def test_three_levels_of_pieces_lead_to_the_root() -> None:
    numbered = leaves_of(PIECE_NODES**2 + 1, 2)
    leaves, pieces = [leaf for _, leaf in numbered], list(pieces_of(numbered))
    assert sorted({piece.level for piece in pieces}) == [0, 6, 12]
    for index in (0, PIECE_NODES, len(leaves) - 1):
        leads = path(pieces, numbered[index][0])
        assert leads.root == merkle_root(leaves) and leads.steps == merkle_proof(leaves, index)


def test_nothing_has_no_pieces() -> None:
    with pytest.raises(ValueError, match="at least one"):
        next(pieces_of([]))


def settled(world, count: int) -> list[str]:
    """Call ids of one settled epoch."""
    world.open_channel(10_000)
    world.charge(*[3] * count)
    assert world.settler().settle(world.token).epoch == 1
    return [receipt.call_id for receipt in world.journal.receipts()]


def test_a_closed_epoch_is_proved_from_its_levels_without_its_other_receipts(world) -> None:
    calls, statements = settled(world, PIECE_NODES + 9), []
    engine = world.journal.database.engine
    event.listen(engine, "before_cursor_execute", lambda conn, cursor, statement, *rest: statements.append(statement))
    proof = Epochs(world.journal).proof(calls[-1], world.chain_id)
    assert verify_proof(proof.leaf, proof.steps, bytes.fromhex(world.ledger.root(1, world.config().receiver)[2:]))
    reads = [statement for statement in statements if "journal_receipt" in statement]
    assert len(reads) == 1 and "call_id =" in reads[0], "one receipt is read: the one that is proved"


def test_the_levels_of_an_epoch_closed_before_are_computed_and_can_be_stored(world) -> None:
    calls = settled(world, 5)
    proof = Epochs(world.journal).proof(calls[2], world.chain_id)
    with world.journal.write(world.token) as conn:
        where = " ON journal_merkle" if conn.dialect.name == "postgresql" else ""
        conn.execute(text(f"DROP TRIGGER journal_merkle_no_delete{where}"))
        conn.execute(merkle.delete())
    computed = []
    epochs = Epochs(world.journal, lambda *levels: computed.append(levels))
    assert epochs.proof(calls[2], world.chain_id) == proof and len(computed) == 1
    for _ in range(2):
        epochs.store_levels(*computed[0], world.token)
    assert epochs.proof(calls[2], world.chain_id) == proof and len(computed) == 1


def test_levels_are_append_only_and_changed_ones_prove_nothing(world) -> None:
    calls = settled(world, 3)
    change = text("UPDATE journal_merkle SET nodes = replace(nodes, 'a', 'b')")
    with pytest.raises(Exception, match="append-only"), world.journal.write(world.token) as conn:
        conn.execute(change)
    with world.journal.write(world.token) as conn:
        where = " ON journal_merkle" if conn.dialect.name == "postgresql" else ""
        conn.execute(text(f"DROP TRIGGER journal_merkle_no_update{where}"))
        conn.execute(change)
    with pytest.raises(JournalError, match="do not lead"):
        Epochs(world.journal).proof(calls[0], world.chain_id)
