"""Verifies the books every hour, so that a change made by hand raises an alarm.

Reads over connections of its own: the treasury's SQL thread must not wait for it. The result is the metric
`leben_ledger_broken`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import closing

from pydantic import SecretStr

from channels.journal import Journal, JournalError
from channels.ledger import BrokenBooks, SqlLedger
from channels.sql import DatabaseDamaged, DatabaseUnavailable

log = logging.getLogger("leben.books")
PAUSE_S = 3600.0


class IntegrityCheck:
    """The hourly check of one mesh's books.

    Args:
        url: of the database.
        ledger: whether the ledger is in it; with a chain only the journal is.
        clock: seconds that only grow.
    """

    def __init__(self, url: SecretStr, ledger: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._ledger, self._clock = url, ledger, clock
        self._began_s = float("-inf")
        self.reading: asyncio.Task[None] | None = None
        """The check that runs or ran last."""
        self.sound = True
        """The result of the last check."""

    def poll(self) -> None:
        """Starts a check if the last one began an hour ago; called often."""
        if self._clock() - self._began_s > PAUSE_S and (self.reading is None or self.reading.done()):
            self._began_s = self._clock()
            self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            await asyncio.to_thread(self._verify)
        except (BrokenBooks, JournalError, DatabaseDamaged) as error:
            log.error("the books are not what was written: %s", error)
            self.sound = False
        except DatabaseUnavailable as error:
            log.warning("the books could not be checked: %s", error)
        else:
            self.sound = True

    def _verify(self) -> None:
        url = self._url.get_secret_value()
        if self._ledger:
            with closing(SqlLedger.open(url, create=False)) as ledger:
                ledger.verify()
        with closing(Journal.open(url, create=False)) as journal:
            journal.verify()
