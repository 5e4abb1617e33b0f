"""Splits patients into development folds and a held-out part: stratified, fixed by a seed.

A random split of slices leaks, because two slices of one head are near copies. A patient therefore falls into exactly
one part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Split:
    """Development folds and the held-out test patients: no patient is in two of them."""

    folds: tuple[frozenset[str], ...]
    test: frozenset[str]

    @property
    def development(self) -> frozenset[str]:
        """All patients that may be used while building the model."""
        return frozenset().union(*self.folds)


def by_patient(positive: Mapping[str, bool], folds: int, test_share: float, seed: int) -> Split:
    """Splits patients, positives and negatives separately so that every part has both.

    Args:
        positive: whether the patient has the finding at all, by patient name.
        folds: number of development folds.
        test_share: share of patients held out, 0 to 1.
        seed: fixes the draw.
    """
    random = np.random.default_rng(seed)
    test: set[str] = set()
    parts: list[set[str]] = [set() for _ in range(folds)]
    for finding in (True, False):
        group = sorted(name for name, value in positive.items() if value is finding)
        random.shuffle(group)
        held = round(len(group) * test_share)
        test.update(group[:held])
        for index, name in enumerate(group[held:]):
            parts[index % folds].add(name)
    return Split(tuple(frozenset(part) for part in parts), frozenset(test))
