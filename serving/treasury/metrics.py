"""Exports the treasury's gauges: sums of money that waits, never a channel or a payer.

Ray puts `ray_` before each name.
"""

from __future__ import annotations

import time

from ray.util.metrics import Gauge

from channels.settlement import Totals


class TreasuryMetrics:
    """The gauges of one treasury.

    Args:
        exposure_cap: atomic units that a channel may owe.
    """

    def __init__(self, exposure_cap: int) -> None:
        self._unsettled = Gauge("leben_unsettled_units", "Atomic units charged and not yet claimed.")
        self._exposure = Gauge("leben_exposure_units", "Atomic units that the channel that owes most owes.")
        self._cap = Gauge("leben_exposure_cap_units", "Atomic units that a channel may owe.")
        self._exposure_cap = exposure_cap
        self._broken = Gauge("leben_ledger_broken", "1 if the books are not what was written, when last checked.")
        self._lag = Gauge("leben_settlement_lag_seconds", "Age of the oldest charge that is not claimed; 0: none.")
        self._open = Gauge("leben_channels_open", "Channels that calls can be paid from.")
        self._quarantined = Gauge(
            "leben_channels_quarantined", "Channels kept out of settlement until a person has looked."
        )
        self._dead_letters = Gauge("leben_journal_set_aside", "Entries of the store's journal that the books refused.")
        self._skew = Gauge("leben_clock_skew_seconds", "How far the treasury's clock is from the store's.")

    def set(
        self, waiting: Totals, channels: int, quarantined: int, dead_letters: int, sound: bool, skew_s: float
    ) -> None:
        """Sets every gauge, also unchanged ones: Ray exports a value once."""
        self._cap.set(self._exposure_cap)
        self._broken.set(0 if sound else 1)
        self._unsettled.set(waiting.amount)
        self._exposure.set(waiting.largest)
        self._lag.set(0 if waiting.oldest_ms is None else max(0.0, time.time() - waiting.oldest_ms / 1000))
        self._open.set(channels)
        self._quarantined.set(quarantined)
        self._dead_letters.set(dead_letters)
        self._skew.set(skew_s)
