"""Bounds what a payer's wallet signs for: `Budget` holds the limits, `Spending` counts against them.

A call counts from when its voucher is signed: a mesh that never answers can still claim what was signed. Once its
charge is known, the rest is given back. Amounts are atomic units; days are UTC days.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from channels.errors import ChannelError

DAY_S = 86_400
PER_CALL = 1_000_000
DEPOSIT_CALLS = 50
NOTICE_S = 7 * DAY_S
"""The limits of a payer who names none: 1.00 a call, a deposit of fifty such calls, a week's notice."""


class BudgetExceeded(ChannelError):
    """Signing would exceed a limit of the payer's; nothing was signed."""


@dataclass(slots=True)
class Budget:
    """What a wallet may sign for, in atomic units; None means no limit.

    A mesh names its price, its deposit and its notice itself: a payer who sets no limits has those of the defaults.

    Attributes:
        per_call: the largest quote that is accepted.
        per_channel: the largest sum that one channel is ever funded with.
        per_day: the largest sum that is spent on one day, over all channels of this wallet object.
        per_dapp: the largest sum that is spent on one day on each DApp named here.
        deposit: what a channel is opened and topped up with; if None what the mesh suggests, within `deposit_calls`.
        deposit_calls: a deposit that the mesh suggests is at most this many times the quote.
        notice_s: the longest notice, in seconds, before the payer can withdraw what is left in a channel.
    """

    per_call: int | None = PER_CALL
    per_channel: int | None = None
    per_day: int | None = None
    per_dapp: Mapping[str, int] = field(default_factory=dict)
    deposit: int | None = None
    deposit_calls: int | None = DEPOSIT_CALLS
    notice_s: int | None = NOTICE_S

    def check_call(self, price: int) -> None:
        """Refuses a quote above `per_call`.

        Raises:
            BudgetExceeded: the quote is above it.
        """
        if self.per_call is not None and price > self.per_call:
            text = (
                f"the quote of {price} is above the limit of {self.per_call} a call: to pay it, set Budget(per_call=…)"
            )
            raise BudgetExceeded("budget_per_call", text)

    def check_notice(self, notice_s: int) -> None:
        """Refuses a channel whose money comes back only after a longer notice than `notice_s`.

        Raises:
            BudgetExceeded: the notice is longer.
        """
        if self.notice_s is not None and notice_s > self.notice_s:
            text = f"the mesh's notice of {notice_s} s before a withdrawal is above the limit of {self.notice_s} s"
            raise BudgetExceeded("budget_notice", f"{text}: to pay it, set Budget(notice_s=…)")

    def deposit_for(self, suggested: int, price: int) -> int:
        """What a channel is funded with: the payer's own sum, else what the mesh suggests, within `deposit_calls`.

        Args:
            suggested: by the mesh.
            price: the quote of the call that needs it.
        """
        if self.deposit is not None:
            return self.deposit
        return suggested if self.deposit_calls is None else min(suggested, self.deposit_calls * price)

    def check_channel(self, funded: int, amount: int) -> None:
        """Refuses a deposit that would take a channel past `per_channel`.

        Raises:
            BudgetExceeded: the deposit would pass it.
        """
        if self.per_channel is not None and funded + amount > self.per_channel:
            text = f"a deposit of {amount} would pass the limit of {self.per_channel} a channel"
            raise BudgetExceeded("budget_per_channel", text)


class Spending:
    """Counts what was signed for today, in all and by DApp; forgotten when the day or the process ends.

    Args:
        now: seconds since 1970.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._day = 0
        self._spent: dict[str, int] = {}
        self._open: dict[str, tuple[str, int]] = {}

    def reserve(self, budget: Budget, call: str, dapp: str, price: int) -> None:
        """Counts a call at its quote, once, however often it is sent.

        Args:
            budget: the limits.
            call: its Idempotency-Key.
            dapp: the DApp's name.
            price: the quote.

        Raises:
            BudgetExceeded: a daily limit would be passed; nothing is counted.
        """
        if int(self._now()) // DAY_S != self._day:
            self._day, self._spent, self._open = int(self._now()) // DAY_S, {}, {}
        if call in self._open:
            return
        limits = (("", budget.per_day, "budget_per_day"), (dapp, budget.per_dapp.get(dapp), "budget_per_dapp"))
        for name, limit, code in limits:
            if limit is not None and self._spent.get(name, 0) + price > limit:
                text = f"{self._spent.get(name, 0)} is spent{name and f' on {name}'} today: {price} more passes {limit}"
                raise BudgetExceeded(code, text)
        for name in {"", dapp}:
            self._spent[name] = self._spent.get(name, 0) + price
        self._open[call] = (dapp, price)

    def today(self, dapp: str = "") -> int:
        """What is counted for today: for one DApp, or in all."""
        return self._spent.get(dapp, 0) if int(self._now()) // DAY_S == self._day else 0

    def settle(self, call: str, charged: int) -> None:
        """Counts a call at what it was charged; a call of an earlier day has no effect."""
        dapp, price = self._open.pop(call, ("", 0))
        for name in {"", dapp} if price else set():
            self._spent[name] -= price - charged
