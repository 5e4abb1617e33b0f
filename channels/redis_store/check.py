"""Checks, before a mesh starts, that a Redis or Valkey server will not lose its charges and belongs to no other mesh.

`INFO` reports every setting but one, for managed servers forbid `CONFIG`. What cannot be checked is reported, never
assumed. A store belongs to one mesh, identified by its ledger: keys may be rotated and backups restored, the ledger
stays the same.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping
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

MIN_REDIS = (7, 0)
"""Older versions keep scripts in the append-only file: a restart that lost the file's end still knew them, and nothing
showed that charges were missing. Every Valkey forgets its scripts.
"""
TIMEOUT_S = 5.0
NONCE_MS = 30_000
"""Longer than `same_store` may take."""
_OLD = "is Redis {}: use Redis 7 or later, or Valkey"


class WrongStore(NotReady):
    """The store must not hold this mesh's money; nothing was changed in it."""


def check(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Checks a server's `INFO`; returns the settings that it does not report.

    Raises:
        WrongStore: its version, kind or settings would lose charges; the message names the change to make.
    """
    fault = _version_fault(info) or _kind_fault(info) or _durability_fault(info)
    if fault:
        raise WrongStore("wrong_store", f"the store {fault}")
    settings = {"aof_enabled": "appendonly", "maxmemory_policy": "maxmemory-policy", "role": "role"}
    return tuple(setting for field, setting in settings.items() if field not in info)


def inspect(
    url: str, mesh: str, timeout_s: float = TIMEOUT_S, now_s: Callable[[], float] = time.time
) -> tuple[str, ...]:
    """Checks a store before a mesh starts on it, and marks an unowned one as this mesh's.

    Args:
        url: of the store; may hold a password, so no message shows it.
        mesh: names the ledger in which the mesh's charges are booked.
        timeout_s: longest wait for the server.
        now_s: this machine's clock, Unix seconds.

    Returns:
        The settings that could not be checked, each with the value it must have.

    Raises:
        WrongStore: the store cannot be reached, would lose charges, or is another mesh's.
        ClockSkew: its clock and this machine's are too far apart.
    """
    try:
        client = _client(url, timeout_s)
    except ValueError:
        # The cause would quote the URL.
        raise _wrong("is named by no URL: LEBEN_STORE_URL is redis://host:6379/0, rediss://… or unix://…") from None
    with closing(client):
        try:
            unchecked = [f"{name}: the server does not report it" for name in check(client.info())]
            unchecked += _check_sync(client)
            _check_clock(client, now_s)
            _claim(client, mesh)
        except (AuthenticationError, AuthorizationError):
            raise _wrong("refuses the user or the password of LEBEN_STORE_URL") from None
        except NoPermissionError as error:
            raise _wrong(f"denies its user a command, deploy/valkey.acl has what is needed: {error}") from None
        except BusyLoadingError:
            raise _wrong("is still loading its file: start again when it is done") from None
        except ResponseError as error:
            if "HELLO" in str(error):  # the first command that a client sends
                raise _wrong(_OLD.format("older than 6")) from None
            raise _wrong(f"refuses a command: {error}") from None
        except (RedisError, OSError) as error:
            raise _wrong(
                f"cannot be reached ({type(error).__name__}): is it running where LEBEN_STORE_URL says?"
            ) from None
    return tuple(unchecked)


def same_store(url: str, replica_url: str, timeout_s: float = TIMEOUT_S) -> None:
    """Refuses a replicas' URL that does not lead to the treasury's database.

    Another database of the same server is refused too: it may still be open for service from before, and nobody would
    drain what is charged in it. So a nonce is written by one URL and must be read by the other.

    Args:
        url: of the store, which `inspect` has accepted; its user may write.
        replica_url: given to replicas.
        timeout_s: longest wait for the server.

    Raises:
        WrongStore: `replica_url` cannot be used or leads elsewhere; no message shows a URL.
    """
    nonce = secrets.token_hex(16)
    try:
        with closing(_client(url, timeout_s)) as treasury, closing(_client(replica_url, timeout_s)) as replica:
            runs = [client.info("server").get("run_id") for client in (treasury, replica)]
            treasury.set(keys.same_store(), nonce, px=NONCE_MS)
            echo: Any = replica.get(keys.same_store())
    except (ValueError, RedisError, OSError) as error:
        fault = f"cannot be used ({type(error).__name__}): is it the store's, with a user that the store knows?"
        raise WrongStore("wrong_store", f"LEBEN_REPLICA_STORE_URL {fault}") from None
    both = "LEBEN_REPLICA_STORE_URL and LEBEN_STORE_URL name two"
    if runs[0] != runs[1]:
        raise WrongStore("wrong_store", f"{both} stores: they must name one")
    if echo != nonce.encode():
        raise WrongStore("wrong_store", f"{both} databases of one server: both end in the same number, or in none")


def foreign(owner: str, mesh: str) -> WrongStore:
    """The refusal of a store that another mesh owns."""
    return WrongStore(
        "foreign_store",
        f"the store belongs to another mesh, which keeps its books in ledger {owner}, and this one in {mesh}: give "
        "each a store of its own, or set LEBEN_LEDGER_URL as it was; only if the other has stopped and its "
        "ledger is lost for good, empty the store: the charges in it are lost too",
    )


def _client(url: str, timeout_s: float) -> Redis:
    return Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


def _wrong(fault: str) -> WrongStore:
    return WrongStore("wrong_store", f"the store {fault}")


def _version_fault(info: Mapping[str, Any]) -> str:
    version = str(info.get("redis_version", ""))
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if "valkey_version" in info or parts >= MIN_REDIS:
        return ""
    return _OLD.format(version or "of an unknown version")


def _kind_fault(info: Mapping[str, Any]) -> str:
    mode = "cluster" if info.get("cluster_enabled") else info.get("redis_mode", "standalone")
    if mode != "standalone":
        return f"runs as a {mode}: use a single server, which may have replicas"
    if info.get("role") in ("slave", "replica"):
        return "is a replica and takes no writes: set LEBEN_STORE_URL to its primary"
    return "" if info.get("run_id") else "does not report its run_id: without it a restart cannot be noticed"


def _durability_fault(info: Mapping[str, Any]) -> str:
    if not info.get("aof_enabled", 1):
        return "loses charges when it stops: set `appendonly yes` in its settings"
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", 0) and policy != "noeviction":
        return f"evicts records of money when its memory is full ({policy}): set `maxmemory-policy noeviction`"
    return ""


def _check_sync(client: Redis) -> list[str]:
    """Checks how often the server syncs its file to the disk, which `INFO` does not report."""
    try:
        policy = client.config_get("appendfsync").get("appendfsync")
    except ResponseError:  # CONFIG is forbidden, renamed or unknown on managed servers
        policy = None
    if policy == "no":
        raise _wrong("leaves the syncing of its file to the system: set `appendfsync everysec`, or `always`")
    return [] if policy else ["appendfsync: CONFIG is not allowed; it has to be everysec or always"]


def _check_clock(client: Redis, now_s: Callable[[], float]) -> None:
    before_s = now_s()
    seconds, micros = client.time()
    clock_skew.check(clock_skew.ahead_s(before_s, seconds + micros / 1e6, now_s()), socket.gethostname())


def _claim(client: Redis, mesh: str) -> None:
    # One step: of two meshes that start at the same time on an empty store, one is refused.
    client.set(keys.mesh(0), mesh, nx=True)
    owner: Any = client.get(keys.mesh(0))
    if owner != mesh.encode():
        raise foreign(owner.decode(errors="replace"), mesh)
