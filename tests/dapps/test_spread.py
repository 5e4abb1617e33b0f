"""Tests dapps/strokedr/prognosis/spread.py."""

import numpy as np
import pytest

from dapps.evaluation import metrics
from dapps.strokedr.prognosis.data import Patients
from dapps.strokedr.prognosis.spread import over_hospitals

HOSPITALS, EACH = 12, 40


def trial(unlike: bool) -> tuple[Patients, "np.ndarray[tuple[int, int], np.dtype[np.float64]]"]:
    """Made-up answers; with `unlike` they are good in half of the hospitals and worthless in the others."""
    random = np.random.default_rng(2)
    count = HOSPITALS * EACH
    hospital = np.repeat(np.arange(HOSPITALS), EACH).astype(str)
    truth = random.integers(0, 2, count)
    gain = np.where(np.arange(count) < count // 2, 4.0, 0.0) if unlike else np.full(count, 2.0)
    score = 1 / (1 + np.exp(-(gain * truth + random.normal(0, 1, count))))
    truth[::10] = -1
    none = np.zeros(count)
    return Patients(none, truth[:, None], hospital, none, none, none), score[:, None]


@pytest.mark.parametrize("unlike", [False, True])
def test_few_hospitals_tell_less_than_all_and_least_where_hospitals_differ(unlike: bool) -> None:
    patients, score = trial(unlike)
    spread = over_hospitals(patients, score, ("outcome",), 3)["outcome"]
    labelled = patients.targets[:, 0] >= 0
    (value, low, high), (middle, lowest, highest) = spread["auc_all_hospitals"], spread["auc_of_3_hospitals"]
    assert value == pytest.approx(metrics.auc(score[labelled, 0], patients.targets[labelled, 0]), abs=1e-4)
    assert lowest < low < value < high < highest and lowest < middle < highest
    assert (highest - lowest > 0.3) is unlike
    assert spread == over_hospitals(patients, score, ("outcome",), 3)["outcome"]


def test_all_hospitals_at_once_are_one_draw() -> None:
    patients, score = trial(False)
    spread = over_hospitals(patients, score, ("outcome",), HOSPITALS + 5)["outcome"]
    assert set(spread[f"auc_of_{HOSPITALS + 5}_hospitals"]) == {spread["auc_all_hospitals"][0]}
