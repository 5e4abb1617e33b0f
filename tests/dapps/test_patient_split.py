"""Tests dapps/evaluation/patient_split.py: no patient is in two parts."""

from hypothesis import given
from hypothesis import strategies as st

from dapps.evaluation.patient_split import by_patient


@given(
    st.dictionaries(st.text(min_size=1), st.booleans(), min_size=1, max_size=60), st.integers(2, 5), st.integers(0, 99)
)
def test_every_patient_is_in_exactly_one_part(positive: dict[str, bool], folds: int, seed: int) -> None:
    split = by_patient(positive, folds, 0.25, seed)
    parts = [*split.folds, split.test]
    assert sum(map(len, parts)) == len(positive) and frozenset().union(*parts) == set(positive)
    assert split.development == set(positive) - split.test
    assert split == by_patient(dict(reversed(positive.items())), folds, 0.25, seed)


def test_both_kinds_are_in_every_part() -> None:
    positive = {f"p{index}": index % 4 == 0 for index in range(80)}
    split = by_patient(positive, 5, 0.25, 1)
    for part in (*split.folds, split.test):
        assert {positive[name] for name in part} == {True, False}
    assert len(split.test) == 20
