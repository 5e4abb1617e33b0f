"""Keeps refusals out of Serve's log.

A deployment refuses a call over a handle by raising `CallError` or `ChannelError`. Serve logs every exception with its
traceback; a stranger who is refused on purpose could fill the log with them.
"""

from __future__ import annotations

import logging

from channels.errors import ChannelError
from serving.errors import CallError


class RefusalFilter(logging.Filter):
    """Drops records of refusals; every other exception is logged as before."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the record is to be logged."""
        return not (record.exc_info and isinstance(record.exc_info[1], CallError | ChannelError))


def quiet_refusals() -> None:
    """Installs the filter in this process; every deployment that refuses over a handle calls it when it starts."""
    logger = logging.getLogger("ray.serve")
    if not any(isinstance(present, RefusalFilter) for present in logger.filters):
        logger.addFilter(RefusalFilter())
