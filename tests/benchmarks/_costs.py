"""What `scale.py` counts with, measured on this machine by the code that runs in a mesh: nothing here is a guess.

Each figure is a name and a number in the unit that the name ends with. CPU is of the process that does the work.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis

sys.path.insert(0, str(Path(__file__).parents[2]))
import settlement
from _mesh import Payer, RunningMesh, leben_up
from _proxy import looked_after
from _ring import BALANCE, Line, closed_loop, on_uvloop, store_cpu_s, valkey

from channels.journal.journal import Journal, JournalChannel
from channels.ledger.sql_ledger import SqlLedger
from channels.metering.store import Attempt, ChannelSnapshot, HoldRequest, LedgerSnapshot
from channels.redis_store import keys
from channels.redis_store.store import RedisStore
from channels.settlement.settler import SettlePolicy, Settler
from serving.cluster import ray_environment
from serving.config.settings import Settings
from serving.telemetry.statistics import RedisCounters
from serving.treasury.transfers import mirror_of
from tests import postgresql

Figures = dict[str, float]
Say = Callable[[str], None]
IN_FLIGHT = 64
TOGETHER = 256
"""As `serving/treasury/deployment.py` has it."""
BODY = json.dumps(
    {"dapp": "chdr", "version": "1", "model": settlement.DIGEST, "request": settlement.DIGEST, "units": 1}
    | {"result": settlement.DIGEST}
    | {"shares": [[carrier, owner, 62] for carrier, owner, _ in settlement.OWNERS]}
)
"""What a charge stores of a call: as long as a real one with four owners."""


def _name(number: int) -> str:
    return f"0x{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:048x}"


async def _together(work: Iterable[Any], number: int = IN_FLIGHT) -> None:
    waiting = list(work)
    for place in range(0, len(waiting), number):
        await asyncio.gather(*waiting[place : place + number])


async def _call(store: RedisStore, channel: str, number: int) -> None:
    """A keyed call, held and charged, whose answer is gone at once."""
    attempt = Attempt(channel, f"0x{number:064x}", f"{number:032x}", True, settlement.DIGEST)
    ask = HoldRequest(attempt, 1, number, bytes(65))
    await store.hold(ask)
    await store.charge(ask, 1, BODY, b"", 1)


async def _stored(url: str, count: int, say: Say) -> Figures:
    store = RedisStore(url, exposure_cap=BALANCE)
    with redis.Redis.from_url(url) as client:

        def bytes_now() -> int:
            until = time.monotonic() + 60
            # Answers that have ended are still there for a while, and so is what is freed on another thread.
            while client.info("keyspace").get("db0", {}).get("expires") or client.info()["lazyfree_pending_objects"]:
                if time.monotonic() > until:
                    raise TimeoutError("the store does not let go of what has expired")
                time.sleep(0.05)
            return int(client.info("memory")["used_memory"])

        def trimmed() -> None:
            for number in range(keys.BUCKETS):
                client.delete(keys.journal(number))

        client.config_set("auto-aof-rewrite-percentage", 0)  # else the file shrinks while what is written is counted
        before = len(client.client_list())
        await store.begin_reconcile(1)
        counters = RedisCounters(url, "echo")
        await counters.add({"success.count": 1}, 1)
        connections = len(client.client_list()) - before
        empty = bytes_now()
        say(f"{count} channels into the store …")
        await _together(store.mirror(LedgerSnapshot(_name(n), BALANCE, 0, False, 0, 1), 1) for n in range(count))
        await store.open_for_service(1)
        idle = bytes_now()
        say("a call on each …")
        cpu, written = store_cpu_s(url), int(client.info("persistence")["aof_current_size"])
        await _together(_call(store, _name(n), n + 1) for n in range(count))
        cpu, written = store_cpu_s(url) - cpu, int(client.info("persistence")["aof_current_size"]) - written
        full = bytes_now()
        drain_cpu = store_cpu_s(url)
        for number in range(keys.BUCKETS):
            upto = "0-0"
            while entries := await store.read_journal(number, upto, 512):
                upto = entries[-1][0]
                await store.trim_journal(number, upto)
        drain_cpu = store_cpu_s(url) - drain_cpu
        once = bytes_now()
        few, more = count // 10, 9
        say("nine more on a tenth of them …")
        for again in range(more):
            await _together(_call(store, _name(n), (again + 2) * 10**9 + n) for n in range(few))
        trimmed()
        often = bytes_now()
        beat = store_cpu_s(url)
        deltas = {name: 1 for name in ("success.count", "success.ns", "queue.count", "queue.ns", "execution_count")}
        deltas |= {f"{name}.ns": 10**6 for name in ("compute_infer", "compute_input", "compute_output", "device")}
        for _ in range(2_000):
            await counters.add(deltas, 1)
        beat = store_cpu_s(url) - beat
    await counters.close()
    await store.close()
    return {
        "store_connections_a_replica": connections,
        "store_idle_channel_bytes": (idle - empty) / count,
        "store_first_call_bytes": (once - idle) / count,
        "store_further_call_bytes": (often - once) / (few * more),
        "store_journal_entry_bytes": (full - once) / count,
        "store_written_call_bytes": written / count,
        "store_call_cpu_us": cpu / count * 1e6,
        "store_drain_entry_cpu_us": drain_cpu / count * 1e6,
        "store_statistics_cpu_us": beat / 2_000 * 1e6,
    }


def store(count: int, say: Say) -> Figures:
    """Memory, CPU and connections of a real Valkey, append-only file on, written by the real store."""
    with valkey() as url:
        return on_uvloop(_stored(url, count, say))


def books(engine: str, url: str, channels: int, receipts: int, say: Say) -> Figures:
    """What draining, settling, opening and reconciling cost on one engine, by the treasury's own steps."""
    ledger, journal = SqlLedger.open(url), Journal.open(url)
    token = journal.acquire("benchmark")
    say(f"{engine}: opening {channels} channels …")
    settlement.RECEIPTS, settlement.PRICE = receipts, 10_000 // receipts  # all that was deposited
    began = time.perf_counter()
    payers = [settlement.opened(ledger, journal, token) for _ in range(channels)]
    opened_s = time.perf_counter() - began
    rows = [settlement.charges(n, *payer, ledger.terms.chain_id) for n, payer in enumerate(payers)]
    entries = [row[place] for place in range(receipts) for row in rows]  # as they come: each channel in turn
    say(f"{engine}: draining {len(entries)} entries …")
    began = time.perf_counter()
    for place in range(0, len(entries), 512):
        journal.append(0, entries[place : place + 512], token)
    drained_s = time.perf_counter() - began
    say(f"{engine}: reconciling …")
    with valkey() as store_url:
        restored_s, mirrored_s = on_uvloop(_reconciled(store_url, journal, ledger, token))
    say(f"{engine}: settling …")
    began = time.perf_counter()
    settler = Settler(journal, ledger, settlement.MESH, SettlePolicy(), time.time)
    settled = 0
    while (step := settler.settle(token)).epoch is not None:
        settled += len(step.channels)
    settled_s = time.perf_counter() - began
    if settled != channels:
        raise SystemExit(f"{channels - settled} channels were not settled")
    ledger.close()
    journal.close()
    size = {"sqlite_entry_bytes": Path(url[10:]).stat().st_size / len(entries)} if engine == "sqlite" else {}
    return size | {
        f"{engine}_open_channel_us": opened_s / channels * 1e6,
        f"{engine}_drain_entry_us": drained_s / len(entries) * 1e6,
        f"{engine}_restore_entry_us": restored_s / len(entries) * 1e6,
        f"{engine}_mirror_channel_us": mirrored_s / channels * 1e6,
        f"{engine}_settle_channel_us": settled_s / channels * 1e6,
    }


async def _reconciled(url: str, journal: Journal, ledger: SqlLedger, token: int) -> tuple[float, float]:
    """Seconds of the two passes of `Treasury._reconcile` over an emptied store."""
    with ThreadPoolExecutor(max_workers=1) as thread:  # the treasury has one for SQL

        async def sql(step: Callable[..., Any], *words: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(thread, step, *words)

        return await _rebuilt(url, journal, ledger, token, sql)


async def _rebuilt(
    url: str, journal: Journal, ledger: SqlLedger, token: int, sql: Callable[..., Awaitable[Any]]
) -> tuple[float, float]:
    store = RedisStore(url, exposure_cap=BALANCE)
    await store.begin_reconcile(token)
    began = time.perf_counter()

    async def restore(copy: JournalChannel) -> None:
        calls = await sql(journal.charged_keys, copy.channel_id)
        proof = (copy.proof_maximum, copy.proof_signature)
        await store.restore(ChannelSnapshot(copy.channel_id, copy.charged, copy.seq, *proof, dict(calls)), token)

    async def mirror(copy: JournalChannel) -> None:
        if (channel := await sql(ledger.channel, copy.channel_id)) is not None:
            await store.mirror(mirror_of(channel), token)

    copies = await asyncio.to_thread(lambda: list(journal.channels()))
    await _together(map(restore, copies), TOGETHER)
    restored_s = time.perf_counter() - began
    began = time.perf_counter()
    await _together(map(mirror, copies), TOGETHER)
    mirrored_s = time.perf_counter() - began
    await store.close()
    return restored_s, mirrored_s


def both_books(channels: int, receipts: int, say: Say) -> Figures:
    """`books` on SQLite and on a PostgreSQL that syncs each commit."""
    postgresql.FAST = ()
    programs = postgresql.binaries()
    if programs is None:
        raise SystemExit(postgresql.MISSING)
    with tempfile.TemporaryDirectory() as folder:
        seconds = books("sqlite", f"sqlite:///{Path(folder) / 'ledger.db'}", channels, receipts, say)
    server = postgresql.Server(programs)
    try:
        return seconds | books("postgresql", server.database(), channels, receipts, say)
    finally:
        server.close()


ROLES = {"ServeReplica:echo_paid": "replica", "haproxy": "haproxy", "HAProxy": "haproxy_manager"} | {
    "ServeReplica:control:Treasury": "treasury",
    "valkey": "valkey",
    "ServeController": "controller",
}


def _spent(mesh: RunningMesh) -> Figures:
    seconds = dict.fromkeys(ROLES.values(), 0.0)
    for process in psutil.Process(mesh.process).children(recursive=True):
        words = " ".join(process.cmdline()[:1])
        for word, role in ROLES.items():
            if word in words:
                used = process.cpu_times()
                seconds[role] += used.user + used.system
                break
    return seconds


async def _called(mesh: RunningMesh, calls: int) -> Figures:
    payer = Payer(mesh, "echo_paid")
    lines = [await Line.open(mesh.port) for _ in range(IN_FLIGHT // 2)]
    await closed_loop([payer.request() for _ in range(300)], lines)
    requests = [payer.request() for _ in range(calls)]
    await asyncio.sleep(2)
    before, began = _spent(mesh), time.perf_counter()
    done = await closed_loop(requests, lines)
    await asyncio.sleep(2)  # the treasury takes what is left
    took_s, used = time.perf_counter() - began, _spent(mesh)
    before_idle, began = _spent(mesh), time.perf_counter()
    await asyncio.sleep(8)
    idle_s, rest = time.perf_counter() - began, _spent(mesh)
    for line in lines:
        await line.close()
    if done.refused:
        raise SystemExit(f"{done.refused} calls were refused")
    idle = {role: (rest[role] - before_idle[role]) / idle_s for role in used}
    calling = {
        f"{role}_call_cpu_us": (used[role] - before[role] - idle[role] * took_s) / calls * 1e6
        for role in used
        if role != "controller"  # it has no part in a call
    }
    return calling | {f"{role}_idle_cores": idle[role] for role in used}


def _checked(mesh: RunningMesh, times: int = 2_000) -> float:
    """Microseconds of a replica's CPU for one of HAProxy's health checks, asked of the replica itself."""
    listening = []
    for process in psutil.Process(mesh.process).children(recursive=True):
        if "ServeReplica:echo_paid" in " ".join(process.cmdline()[:1]):
            ports = [
                connection.laddr.port
                for connection in process.net_connections()
                if connection.status == psutil.CONN_LISTEN
            ]
            listening = [port for port in ports if mesh.port + 20 <= port < mesh.port + 60]
    (port,) = listening
    before = _spent(mesh)["replica"]
    for _ in range(times):  # a connection of its own each, as HAProxy opens it
        if httpx.get(f"http://127.0.0.1:{port}/-/healthz").status_code != 200:
            raise SystemExit("a replica is not healthy")
    return (_spent(mesh)["replica"] - before) / times * 1e6


def mesh(calls: int, say: Say) -> Figures:
    """CPU of every process of a whole mesh for a paid call of 7 B, and of a replica for a health check."""
    say(f"a mesh, and {calls} paid calls …")
    with leben_up(["echo_paid"]) as running:
        costs = on_uvloop(_called(running, calls)) | {"replica_check_cpu_us": _checked(running)}
        written = ray_environment.environment(Settings(data=running.data, port=running.port))
        config = Path(written["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
        (path,) = config.parent.glob(f"**/{config.stem}*{config.suffix}")
        text = path.read_text()
    say("an HAProxy with 10 000 servers …")
    return costs | looked_after(text, 10_000)
