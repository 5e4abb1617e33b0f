"""A mesh of real processes that is kept running as production keeps it, payers who retry, and the books at the end.

A replica, a treasury and a Valkey, each a process of its own on one data folder. Whatever dies is started again on the
same folder. `World.close_books` says which rule of money is broken, by name, and at which point of the ring.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import redis

from channels.journal.journal import Journal
from channels.journal.refunds import Refunds
from channels.ledger.sql_ledger import SqlLedger
from channels.metering.store import Attempt, HoldRequest
from channels.payer import Budget, ChannelAuth, Wallet, receipt
from channels.payer.channel import PayerChannel
from channels.protocol.signer import Signer
from channels.redis_store import keys
from channels.redis_store.store import RedisStore
from channels.settlement.epochs import Epochs
from serving.cluster import data_folder, valkey
from serving.config.settings import Settings
from tests.crashes import faults
from tests.crashes.children import OWNERS, Plan, ask_treasury, run_replica, run_treasury
from tests.crashes.faults import Fault, kill

FUNDS, DEPOSIT, REFUND = 1_000_000, 20_000, 1_000
PATIENCE_S = 150.0
"""When a test gives up; nothing is asserted about how long a step takes."""
RUN = {"replica": run_replica, "treasury": run_treasury}


class Payer:
    """A payer with its own channel, who repeats a call under its key until it has an answer."""

    def __init__(self, world: World) -> None:
        self.wallet = Wallet(Signer.generate(), Budget(deposit=DEPOSIT))
        self.auth = ChannelAuth(self.wallet)
        world.ledger.fund(self.wallet.address, FUNDS)
        self.http = httpx.AsyncClient(transport=world.transport(), base_url="http://mesh", auth=self.auth, timeout=30)
        self.answers: dict[str, httpx.Response] = {}
        self.bodies: dict[str, bytes] = {}

    @property
    def channel(self) -> PayerChannel:
        (channel,) = self.auth.channels.values()
        return channel

    async def call(self, key: str, x: float = 3.0, status: int = 200) -> httpx.Response:
        answer = await self._call(key, x)
        assert answer.status_code == status, f"call {key}: {answer.status_code} {answer.text}"
        self.answers[key] = answer
        self.bodies[key] = infer(x)
        return answer

    async def again(self, key: str) -> httpx.Response:
        """The very same call once more, with the voucher it had."""
        request = self.answers[key].request
        headers = {name: request.headers[name] for name in ("PAYMENT-SIGNATURE", "Idempotency-Key", "Content-Type")}
        return await self.http.post("/infer", content=self.bodies[key], headers=headers, auth=None)

    async def _call(self, key: str, x: float) -> httpx.Response:
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}

        async def once() -> httpx.Response | None:
            try:
                answer = await self.http.post("/infer", content=infer(x), headers=headers)
            except httpx.TransportError:
                return None
            return None if answer.status_code in (409, 503) else answer

        return await eventually(once, f"an answer to call {key}")


def infer(x: float) -> bytes:
    return b'{"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [%d, 2]}]}' % x


async def eventually(attempt: Callable[[], Awaitable[Any]], what: str) -> Any:
    """The first result of `attempt` that is not None."""
    until = time.monotonic() + PATIENCE_S
    while (result := await attempt()) is None:
        assert time.monotonic() < until, f"never came: {what}"
        await asyncio.sleep(0.02)
    return result


class World:
    """The processes and their data folder."""

    def __init__(self, exposure_cap: int = 1_000_000) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lc-"))
        self.settings = Settings(data=self.folder)
        data_folder.private_folder(self.settings.runtime)
        self.fault: Fault | None = None
        self.left_dead = False
        self._instead: Path | None = None
        self._logged = 0
        self.payers: list[Payer] = []
        self.ledger = SqlLedger.open(f"sqlite:///{self.folder / 'ledger.db'}")
        self.journal = Journal.open(f"sqlite:///{self.folder / 'ledger.db'}")
        self.start_store()
        terms, url = self.ledger.terms, self.settings.redis_url()
        self.plan = Plan(self.folder, terms, url, exposure_cap)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.crashes.children", "torch"])
        self.children: dict[str, Any] = {}
        for name in RUN:
            self.spawn(name)

    def transport(self, replica: str = "replica") -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(uds=self.plan.socket(replica))

    def payer(self) -> Payer:
        self.payers.append(Payer(self))
        return self.payers[-1]

    def arm(self) -> None:
        """From here on the fault's point is fatal."""
        if self.fault is not None:
            faults.arm(self.folder, self.fault)

    async def struck(self) -> None:
        """Waits until the fault has struck: a case whose point is never reached proves nothing."""

        async def marked() -> bool | None:
            return (self.folder / faults.STRUCK).exists() or None

        await eventually(marked, f"the moment when {self.fault}")

    async def ask(self, verb: str, word: str = "") -> Any:
        """Asks the treasury, again and again if it dies meanwhile."""

        async def once() -> Any:
            try:
                return await ask_treasury(self.plan, verb, word)
            except OSError:
                return None

        return await eventually(once, f"the treasury's answer to {verb}")

    def kill_store(self, lose_files: bool = False, instead: Path | None = None) -> None:
        """Kills Valkey; what it ever wrote is deleted before it starts again, or put back from an older copy."""
        self._lose_files, self._instead = lose_files, instead
        kill(self.valkey.process.pid)

    async def _keep_running(self) -> None:
        """Starts again whatever ends, on the same folder: as Ray and `leben up` do it."""
        while True:
            for name, child in list(self.children.items()):
                if child.exitcode is not None and not self.left_dead:
                    assert child.exitcode == -signal.SIGKILL, f"{name} ended by itself: {self._logs()}"
                    child.close()
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.valkey.process.pid, signal.SIGCONT)
                    self.spawn(name)
            if self.valkey.process.poll() is not None and not self.left_dead:
                if self._lose_files:
                    shutil.rmtree(self.settings.home / "store")
                if self._instead:
                    shutil.copytree(self._instead, self.settings.home / "store")
                self.start_store()
            await asyncio.sleep(0.005)

    def close(self) -> None:
        for child in self.children.values():
            child.kill()
            child.join()
            child.close()
        self.valkey.stop()
        self.ledger.close()
        self.journal.close()
        shutil.rmtree(self.settings.runtime, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_store(self) -> None:
        self._lose_files, self._instead = False, None
        number = self.folder / faults.STORE_PID
        number.unlink(missing_ok=True)
        self.valkey = valkey.Valkey(self.settings)
        # With `everysec` a killed server loses what it acknowledged while a sync was under way (docs/operate.md):
        # that is bounded loss, tested apart. Here the file is whole, and then nothing at all may be lost.
        with redis.Redis.from_url(self.settings.redis_url()) as client:
            client.config_set("appendfsync", "always")
        # Last: from here on a fault may stop it, and would have stopped it in the middle of the command above.
        faults.put(number, str(self.valkey.process.pid))

    def spawn(self, name: str) -> None:
        self.children[name] = self._context.Process(target=RUN[name.rstrip("2")], args=(self.plan, name), name=name)
        self.children[name].start()

    def begin(self, fault: Fault | None) -> None:
        """A new case in the same world."""
        faults.disarm(self.folder)
        self.plan.go.unlink(missing_ok=True)
        self.fault, self.payers, self.left_dead = fault, [], False
        log = self.folder / "treasury.log"
        self._logged = log.stat().st_size if log.exists() else 0

    def log(self) -> str:
        """What treasuries logged since the case began."""
        return (self.folder / "treasury.log").read_bytes()[self._logged :].decode()

    def _logs(self) -> str:
        files = (self.folder / f"{name}.log" for name in RUN)
        return "\n".join(f"{file.name}: {file.read_text()[-3_000:]}" for file in files if file.exists())

    async def close_books(self) -> None:
        """Goes on, waits, settles, and compares every book with every other.

        Raises:
            AssertionError: names the point of the fault and each rule that is broken.
        """
        for payer in self.payers:
            await payer.call("last")
        broken = [line for payer in self.payers for line in await self._replayed(payer)]
        await self.ask("settle")
        broken += [line for payer in self.payers for line in await self._booked(payer)]
        broken += self._shared()
        assert not broken, f"{self.fault}: " + "; ".join(broken) + "\n" + self._logs()

    async def _replayed(self, payer: Payer) -> list[str]:
        broken = []
        for key, first in payer.answers.items():
            again = await payer.again(key)
            if again.status_code != first.status_code:
                broken.append(f"call {key} was {first.status_code}, repeated it is {again.status_code} {again.text}")
            elif first.status_code == 200 and (again.content, receipt(again)) != (first.content, receipt(first)):
                broken.append(f"call {key} gives another answer when it is repeated")
        return broken

    async def _booked(self, payer: Payer) -> list[str]:
        name, broken = payer.channel.id, []
        copy, on_ledger = self.journal.channel(name), self.ledger.channel(name)
        assert copy is not None and on_ledger is not None
        stored = self.journal.receipts(name)
        handed = [receipt(answer).receipt for answer in payer.answers.values() if answer.status_code == 200]
        total, before = sum(receipt.amount for receipt in stored), 0
        rules = {
            "every receipt that a payer has is in the books": all(receipt in stored for receipt in handed),
            "one charge a key and none that nobody asked for": len(stored) == len(handed),
            "numbers are without a gap": [receipt.seq for receipt in stored] == list(range(1, len(stored) + 1)),
            "receipts = charged": total == copy.charged,
            "charged = claimed": copy.charged == copy.settled == on_ledger.total_claimed,
            "the store says the same": await self.in_store(name) == (copy.charged, 0),
            "the payer says the same": (payer.channel.charged, payer.channel.outstanding) == (copy.charged, {}),
            "one deposit, one refund": payer.channel.deposited == on_ledger.balance
            and self.ledger.wallet(payer.wallet.address) == FUNDS - on_ledger.balance
            and on_ledger.balance in (DEPOSIT, DEPOSIT - REFUND),
        }
        for row in stored:
            rules["each receipt begins where the last ended"] = row.before == before
            before = row.after
            if not rules["each receipt begins where the last ended"]:
                break
        return broken + [f"not true: {rule}" for rule, holds in rules.items() if not holds]

    async def in_store(self, name: str) -> tuple[int, int]:
        """What the store has charged and still holds, once what dead processes held has ended."""
        store = RedisStore(self.plan.store_url, self.plan.exposure_cap)

        async def free() -> tuple[int, int] | None:
            held = await store.hold(HoldRequest(Attempt(name, "probe", "p", True, "d"), 0, 0, bytes(65)), dry=True)
            return (held.charged, held.held) if held.held == 0 else None

        try:
            return await eventually(free, "the end of a dead replica's holds")
        finally:
            await store.close()

    def _shared(self) -> list[str]:
        stored = self.journal.receipts()
        owed: dict[str, int] = dict.fromkeys(OWNERS, 0)
        for share in (share for row in stored for share in row.shares):
            owed[share.owner] += share.amount
        log = self.log()
        rules = {
            "each owner has its shares": all(self.ledger.earnings(owner) == sum_ for owner, sum_ in owed.items()),
            "nothing is left under way": not Refunds(self.journal).pending() and Epochs(self.journal).pending() is None,
            "nothing needs a person": "ALARM" not in log and "quarantined" not in log and "abandoned" not in log,
            "no step fails for a reason of its own": "Traceback" not in log,
        }
        self.journal.verify()
        self.ledger.verify()
        return [f"not true: {rule}" for rule, holds in rules.items() if not holds]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps everything running until the end of the block."""
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep_running())
                yield
                keeper.cancel()
        finally:
            for payer in self.payers:
                await payer.http.aclose()


def channel_fields(world: World, name: str) -> dict[str, str]:
    """A channel's record in the store."""
    with redis.Redis.from_url(world.plan.store_url, decode_responses=True) as client:
        fields: dict[str, str] = client.hgetall(keys.channel(name))
    return fields
