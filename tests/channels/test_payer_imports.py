"""A payer imports what it pays with: no database, chain client, cluster or tensor library comes along."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    *(
        "alembic",
        "grpc",
        "numpy",
        "psycopg",
        "ray",
        "redis",
        "sqlalchemy",
        "starlette",
        "torch",
        "tritonclient",
        "web3",
    ),
    "eth_account",  # half a second; only an encrypted key file needs it
    *(
        "serving",
        "dapps",
        "channels.evm",
        "channels.journal",
        "channels.ledger",
        "channels.redis_store",
        "channels.sql",
    ),
)


@pytest.mark.parametrize("room", ["payer", "protocol", "receipts", "metering", "errors"])
def test_a_room_of_the_payer_imports_nothing_heavy(room: str) -> None:
    program = f"import sys, channels.{room}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr
