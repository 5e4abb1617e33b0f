"""Refund intents: one at a time a channel, kept until the ledger's nonce has passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from channels.journal.journal import Journal, StaleToken
from channels.journal.refunds import Intent, Refunds
from channels.protocol.signer import Signer
from channels.protocol.x402 import ChannelConfig

A = Signer(b"\1" * 32).address
NAME = "0x" + "ab" * 32


def test_an_intent_outlives_its_process_and_stands_before_any_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'books.db'}"
    journal = Journal.open(url)
    token = journal.acquire("first")
    journal.remember_channel(ChannelConfig(A, A, A, A, A, 900, "0x" + "00" * 32), NAME, token)
    first = Refunds(journal).begin(Intent(NAME, 50, 0), token)
    journal.close()

    again = Journal.open(url)
    newer, refunds = again.acquire("second"), Refunds(again)
    assert refunds.pending() == [first]
    assert refunds.begin(Intent(NAME, 70, 0), newer) == first, "the one under way is finished first"
    with pytest.raises(StaleToken):
        refunds.end(first, token)
    refunds.end(first, newer)
    assert refunds.pending() == []
    again.close()
