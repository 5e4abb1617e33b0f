"""The scripts that run on the server: their texts, and the keys that the one of a channel's calls is given.

The steps of a call (`hold.lua`, `charge.lua`, `release.lua`, `renew.lua`) are functions of one script, `CALLS`, which
takes any number of them on one channel: what calls in flight have in common is read and written once for all of them.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files

from channels.redis_store import keys

CALLS = "calls"
"""The script of the steps below."""
STEPS = ("hold", "charge", "release", "renew")


@cache
def names() -> tuple[str, ...]:
    """Every script."""
    found = (
        entry.name[:-4]
        for entry in files("channels.redis_store").joinpath("scripts").iterdir()
        if entry.name[-4:] == ".lua"
    )
    return (CALLS, *sorted(name for name in found if name not in STEPS and not name.startswith("_")))


@cache
def source(name: str) -> str:
    """The text of a script."""
    parts = ("_head", *STEPS, "_tail") if name == CALLS else (name,)
    return "".join(files("channels.redis_store").joinpath("scripts", f"{part}.lua").read_text() for part in parts)


@lru_cache(maxsize=4096)
def call_keys(channel_id: str) -> tuple[str, ...]:
    """The keys of `CALLS`, for one channel."""
    number = keys.bucket(channel_id)
    own = (keys.channel(channel_id), keys.holds(channel_id), keys.charged(channel_id))
    answers = keys.answer(channel_id, "")
    return (keys.readiness(number), *own, keys.journal(number), keys.abandoned(channel_id), answers)
