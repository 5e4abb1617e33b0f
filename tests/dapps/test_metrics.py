"""Tests dapps/evaluation/metrics.py against definitions counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapps.evaluation import metrics
from tests.examples import examples

PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1)), min_size=2, max_size=40)


@given(PAIRS)
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, int]]) -> None:
    scores, truth = np.array(pairs).T
    won = [(p > n) + (p == n) / 2 for p in scores[truth == 1] for n in scores[truth == 0]]
    area = metrics.auc(scores, truth)
    assert area == pytest.approx(np.mean(won)) if won else np.isnan(area)


@given(PAIRS, st.floats(0.05, 1.0))
def test_cutoffs_keep_what_they_promise_and_give_away_nothing_more(pairs: list[tuple[int, int]], least: float) -> None:
    scores, truth = np.array(pairs, float).T
    if not 0 < truth.sum() < len(truth):
        return
    low = metrics.cutoff_for_sensitivity(scores, truth, least)
    assert metrics.sensitivity(scores, truth, low) >= least - 1e-9
    assert metrics.sensitivity(scores, truth, np.nextafter(low, np.inf)) < least + 1e-9
    high = metrics.cutoff_for_specificity(scores, truth, least)
    assert metrics.specificity(scores, truth, high) >= least - 1e-9


@given(st.integers(0, 1000))
@settings(max_examples=examples(20))
def test_platt_recovers_the_line_that_made_the_labels(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, 4000)
    truth = (random.random(4000) < 1 / (1 + np.exp(-(0.7 * logits - 1)))).astype(int)
    slope, offset = metrics.platt(logits, truth)
    assert slope == pytest.approx(0.7, abs=0.15) and offset == pytest.approx(-1, abs=0.2)


def test_platt_never_turns_a_score_around_and_survives_perfect_separation() -> None:
    truth = np.array([0, 0, 1, 1])
    assert metrics.platt(np.array([2.0, 1.0, -1.0, -2.0]), truth)[0] == 0
    assert np.isfinite(metrics.platt(np.array([-9.0, -8.0, 8.0, 9.0]), truth)).all()


def test_calibration_error_by_hand() -> None:
    probabilities, truth = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 1, 1, 1])
    assert metrics.calibration_error(probabilities, truth) == pytest.approx(0.25)
    assert [row[0] for row in metrics.reliability(np.array([0.0, 1.0]), np.array([0, 1]))] == [1, 1]


def test_the_interval_resamples_patients_not_items() -> None:
    """Ten copies of every item are no news: the interval must stay as wide."""
    random = np.random.default_rng(3)
    truth = np.tile([0, 1], 15)
    scores = truth + random.normal(0, 1.2, 30)
    names = [str(index) for index in range(30)]
    auc = {"auc": metrics.auc}
    few = metrics.bootstrap(auc, scores, truth, names, rounds=300)["auc"]
    copies = (np.repeat(scores, 10), np.repeat(truth, 10), np.repeat(names, 10).tolist())
    many = metrics.bootstrap(auc, *copies, rounds=300)["auc"]
    assert few.low < few.value < few.high
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.2)


def test_the_roc_curve_ends_in_both_corners_and_has_the_auc_below_it() -> None:
    random = np.random.default_rng(4)
    truth = random.integers(0, 2, 200)
    scores = np.round(truth + random.normal(0, 1, 200), 1)
    alarms, hits = metrics.roc(scores, truth)
    assert (alarms[0], hits[0], alarms[-1], hits[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(hits, alarms) == pytest.approx(metrics.auc(scores, truth))


def test_weights_move_the_calibration_to_those_who_weigh_more() -> None:
    truth = np.array([1] * 80 + [0] * 20 + [1] * 20 + [0] * 80)
    logits = np.random.default_rng(0).normal(0, 0.01, 200)
    level = [metrics.platt(logits, truth, weight)[1] for weight in (None, np.repeat([1.0, 9.0], 100))]
    assert level[1] < level[0] - 0.5
