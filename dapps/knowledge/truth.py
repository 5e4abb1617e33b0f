"""Implements Kleene's three-valued logic: True, False, and None for unknown. Unknown is never "no".

Stephen Kleene, Introduction to Metamathematics (1952), section 64.
"""

from __future__ import annotations

from collections.abc import Iterable

Truth = bool | None
"""True, False, or None: unknown."""


def both(truths: Iterable[Truth]) -> Truth:
    """Strong conjunction: one False decides, else one unknown leaves it open."""
    values = list(truths)
    if False in values:
        return False
    return None if None in values else True


def either(truths: Iterable[Truth]) -> Truth:
    """Strong disjunction: one True decides, else one unknown leaves it open."""
    values = list(truths)
    if True in values:
        return True
    return None if None in values else False


def negate(truth: Truth) -> Truth:
    """Strong negation: what is unknown stays unknown."""
    return None if truth is None else not truth


def word(truth: Truth) -> str:
    """``"true"``, ``"false"`` or ``"unknown"``, as answers and tables show it."""
    return "unknown" if truth is None else str(truth).lower()
