"""Whether a Redis or Valkey may be trusted with a mesh's money: looked at before anything is served from it.

`INFO` tells all but one thing, for servers that others run forbid `CONFIG`. What cannot be looked at is said, never
assumed. A store belongs to one mesh, by the ledger its charges are booked in: keys may be rotated and backups restored,
the ledger stays the same.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from channels.errors import NotReady
from channels.metering import clock_skew
from channels.redis_store import keys

LEAST_REDIS = (7, 0)
"""Before it, scripts were in the append-only file too, and known again after a restart that had lost its end: nothing
told that charges were missing. Every Valkey forgets them.
"""
PATIENCE_S = 5.0
WORD_MS = 30_000
"""Longer than all of `same_store` may take."""
_OLD = "is Redis {}: use Redis 7 or later, or Valkey"


class WrongStore(NotReady):
    """The store is no place to keep this mesh's money; nothing was changed in it."""


def check(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuses a server by what its `INFO` says; gives what it does not say.

    Raises:
        WrongStore: its version, kind or settings would lose charges; the text says what to change.
    """
    wrong = _version(info) or _kind(info) or _kept(info)
    if wrong:
        raise WrongStore("wrong_store", f"the store {wrong}")
    asked = {"aof_enabled": "appendonly", "maxmemory_policy": "maxmemory-policy", "role": "role"}
    return tuple(setting for field, setting in asked.items() if field not in info)


def inspect(url: str, mesh: str) -> tuple[str, ...]:
    """Looks at a store before a mesh starts on it, and marks an unowned one as this mesh's.

    Args:
        url: of the store; may hold a password, so no text shows it.
        mesh: names the ledger that the mesh's charges are booked in.

    Returns:
        What could not be looked at, each with what it has to be.

    Raises:
        WrongStore: it cannot be reached, is not fit, or is another mesh's.
        ClockSkew: its clock and this machine's are too far apart.
    """
    try:
        client = _client(url)
    except ValueError:
        # The cause would quote the URL.
        raise _no("is named by no URL: LEBEN_STORE_URL is redis://host:6379/0, rediss://… or unix://…") from None
    with closing(client):
        try:
            unsaid = [f"{name}: the server does not tell it" for name in check(client.info())]
            unsaid += _synced(client)
            _same_time(client)
            _owned(client, mesh)
        except (AuthenticationError, AuthorizationError):
            raise _no("refuses the user or the password of LEBEN_STORE_URL") from None
        except NoPermissionError as error:
            raise _no(f"lets its user do too little, deploy/valkey.acl has what is needed: {error}") from None
        except BusyLoadingError:
            raise _no("is still reading its file: start again when it has") from None
        except ResponseError as error:
            if "HELLO" in str(error):  # the first word that a client says to it
                raise _no(_OLD.format("older than 6")) from None
            raise _no(f"refuses a step: {error}") from None
        except (RedisError, OSError) as error:
            raise _no(
                f"cannot be reached ({type(error).__name__}): is it running where LEBEN_STORE_URL says?"
            ) from None
    return tuple(unsaid)


def same_store(url: str, replica_url: str) -> None:
    """Refuses a second way to the store that is closed or leads elsewhere.

    Elsewhere is also another database of the same server: its gate stays closed, or stands open from before, and then
    nobody would drain what is charged behind it. So a new word goes in by one way and has to come out by the other.

    Args:
        url: of the store, which `inspect` has found fit; its user may write.
        replica_url: what replicas get.

    Raises:
        WrongStore: with what is wrong; no text shows a URL.
    """
    word = secrets.token_hex(16)
    try:
        with closing(_client(url)) as treasury, closing(_client(replica_url)) as replica:
            runs = [client.info("server").get("run_id") for client in (treasury, replica)]
            treasury.set(keys.same_store(), word, px=WORD_MS)
            found: Any = replica.get(keys.same_store())
    except (ValueError, RedisError, OSError) as error:
        told = f"cannot be used ({type(error).__name__}): is it the store's, with a user that the store knows?"
        raise WrongStore("wrong_store", f"LEBEN_REPLICA_STORE_URL {told}") from None
    both = "LEBEN_REPLICA_STORE_URL and LEBEN_STORE_URL name two"
    if runs[0] != runs[1]:
        raise WrongStore("wrong_store", f"{both} stores: they are one")
    if found != word.encode():
        raise WrongStore("wrong_store", f"{both} databases of one server: both end in the same number, or in none")


def foreign(owner: str, mesh: str) -> WrongStore:
    """The refusal of a store that another mesh has."""
    return WrongStore(
        "foreign_store",
        f"the store belongs to another mesh, which keeps its books in ledger {owner}, and this one in {mesh}: give "
        "each a store of its own, or set LEBEN_LEDGER_URL as it was; if the other is gone for good, empty the store",
    )


def _client(url: str) -> Redis:
    return Redis.from_url(
        url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)
    )


def _no(what: str) -> WrongStore:
    return WrongStore("wrong_store", f"the store {what}")


def _version(info: Mapping[str, Any]) -> str:
    told = str(info.get("redis_version", ""))
    parts = tuple(int(part) for part in told.split(".")[:2] if part.isdigit())
    if "valkey_version" in info or parts >= LEAST_REDIS:
        return ""
    return _OLD.format(told or "of an unknown version")


def _kind(info: Mapping[str, Any]) -> str:
    mode = "cluster" if info.get("cluster_enabled") else info.get("redis_mode", "standalone")
    if mode != "standalone":
        return f"runs as a {mode}: use a single server, which may have replicas"
    if info.get("role") in ("slave", "replica"):
        return "is a replica and takes no writes: set LEBEN_STORE_URL to its primary"
    return "" if info.get("run_id") else "does not tell its run_id: without it a restart cannot be noticed"


def _kept(info: Mapping[str, Any]) -> str:
    if not info.get("aof_enabled", 1):
        return "forgets charges when it ends: set `appendonly yes` in its settings"
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", 0) and policy != "noeviction":
        return f"throws records of money away when its memory is full ({policy}): set `maxmemory-policy noeviction`"
    return ""


def _synced(client: Redis) -> list[str]:
    """The one thing that `INFO` does not tell: how often what is written is synced to the disk."""
    try:
        found = client.config_get("appendfsync").get("appendfsync")
    except ResponseError:  # forbidden, renamed, or unknown: as servers that others run have it
        found = None
    if found == "no":
        raise _no("syncs its file when the system likes: set `appendfsync everysec`, or `always`")
    return [] if found else ["appendfsync: CONFIG is not allowed; it has to be everysec or always"]


def _same_time(client: Redis) -> None:
    asked_s = time.time()
    seconds, micros = client.time()
    clock_skew.check(clock_skew.ahead_s(asked_s, seconds + micros / 1e6, time.time()), socket.gethostname())


def _owned(client: Redis, mesh: str) -> None:
    # One step, so of two meshes that start at once on an empty store one is refused.
    client.set(keys.mesh(0), mesh, nx=True)
    owner: Any = client.get(keys.mesh(0))
    if owner != mesh.encode():
        raise foreign(owner.decode(errors="replace"), mesh)
