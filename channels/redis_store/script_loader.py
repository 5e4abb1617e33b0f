"""Loads the texts of the Lua scripts and lists the keys of a channel's call script.

The steps of a call (`hold.lua`, `charge.lua` …) are functions of one script, `CALLS`, which runs any number of steps on
one channel: the channel is read and written once for all of them.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files

from channels.redis_store import keys

CALLS = "calls"
"""The script that is made of the steps below."""
STEPS = ("hold", "charge", "release", "renew", "amounts")


@cache
def names() -> tuple[str, ...]:
    """The names of all scripts that are loaded on a server."""
    folder = files("channels.redis_store").joinpath("scripts")
    stems = (entry.name[:-4] for entry in folder.iterdir() if entry.name.endswith(".lua"))
    return (CALLS, *sorted(stem for stem in stems if stem not in STEPS and not stem.startswith("_")))


@cache
def source(name: str) -> str:
    """The text of a script, without the server's `run_id`."""
    folder = files("channels.redis_store").joinpath("scripts")
    parts = ("_head", *STEPS, "_tail") if name == CALLS else (name,)
    return "".join(folder.joinpath(f"{part}.lua").read_text() for part in parts)


@lru_cache(maxsize=4096)
def call_keys(channel_id: str) -> tuple[str, ...]:
    """KEYS of `CALLS` for one channel, in the order of `scripts/_head.lua`."""
    number = keys.bucket(channel_id)
    return (
        keys.readiness(number),
        keys.channel(channel_id),
        keys.holds(channel_id),
        keys.charged(channel_id),
        keys.journal(number),
        keys.abandoned(channel_id),
        keys.answer(channel_id, ""),
    )
