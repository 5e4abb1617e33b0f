"""Names every Redis key, with its type and lifetime; no other module spells one.

Keys carry channel ids and keyed hashes of call identities, never a caller's own words: an Idempotency-Key may contain a
patient's number. The tag `{NN}` puts a channel and its bucket's journal on one node of a Redis Cluster.
"""

from __future__ import annotations

BUCKETS = 64


def bucket(channel_id: str) -> int:
    """The bucket of a channel; ids are digests, so their first byte spreads evenly."""
    return int(channel_id[2:4], 16) % BUCKETS


def half(digest: str) -> str:
    """128 of the 256 bits of a keyed digest: enough to distinguish the calls of one channel, in half the memory."""
    return digest[-32:]


def _tag(number: int) -> str:
    return f"leben:{{{number:02d}}}"


def readiness(number: int) -> str:
    """String, no expiry: `run_id` of the server that the treasury has reconciled; absent or different = not ready.

    Bump the suffix whenever the scripts change the stored layout, so old data is reconciled from SQL.
    """
    return f"{_tag(number)}:gate2"


def token(number: int) -> str:
    """String, no expiry: fencing token of the treasury that may write snapshots and restores."""
    return f"{_tag(number)}:token"


def mesh(number: int) -> str:
    """String, no expiry: the ledger of the mesh that owns the store; another mesh's treasury is refused."""
    return f"{_tag(number)}:mesh"


def same_store() -> str:
    """String, expires after 30 s: a random nonce that shows at start that two URLs lead to one database."""
    return f"{_tag(0)}:way"


def journal(number: int) -> str:
    """Stream, trimmed after draining: one entry a charge."""
    return f"{_tag(number)}:journal"


def channel(channel_id: str) -> str:
    """Hash, no expiry: the channel's record (docs/one-voucher.md lists its fields)."""
    return f"{_tag(bucket(channel_id))}:channel:{channel_id}"


def holds(channel_id: str) -> str:
    """Hash, lives as long as its holds: call id to `token|amount|digest|ends`, `ends` in Unix milliseconds."""
    return f"{_tag(bucket(channel_id))}:holds:{channel_id}"


def charged(channel_id: str) -> str:
    """Hash, no expiry: for each call charged under a key, `half` its id to `half` its request's digest.

    A key never runs twice. Nothing else is kept for ever: a mesh lives as long as its store has memory for it.
    """
    return f"{_tag(bucket(channel_id))}:charged:{channel_id}"


def abandoned(channel_id: str) -> str:
    """String, expires after a minute: how many calls without a key their callers abandoned while they ran."""
    return f"{_tag(bucket(channel_id))}:abandoned:{channel_id}"


def answer(channel_id: str, call_id: str) -> str:
    """Hash, expires after `answer_ttl_ms`: a charged call's record and encrypted answer."""
    return f"{_tag(bucket(channel_id))}:answer:{channel_id}:{call_id}"
