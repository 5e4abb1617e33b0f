"""Measures how far a result depends on the choice of held-out hospitals, for the card alone.

One held-out part is one draw. Here members answer every patient without having seen that hospital, and whole hospitals
are drawn again and again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dapps.evaluation import metrics
from dapps.strokedr.prognosis.data import Patients

DRAWS = 1000

Array = np.ndarray[Any, np.dtype[Any]]


def over_hospitals(patients: Patients, probability: Array, models: tuple[str, ...], held: int) -> dict[str, Any]:
    """AUC over all hospitals, and of random groups of them.

    Args:
        patients: the trial.
        probability: [n, len(models)], each row from members that have not seen its hospital.
        models: names of the columns.
        held: how many hospitals one group has: as many as are held out.

    Returns:
        By model: the AUC over everybody with a 95 % interval by bootstrap over hospitals, and the middle, the 2.5th
        and the 97.5th percentile of the AUC of `held` hospitals drawn without replacement.
    """
    spread: dict[str, Any] = {}
    for index, model in enumerate(models):
        rows = np.flatnonzero(patients.targets[:, index] >= 0)
        truth, score, hospital = patients.targets[rows, index], probability[rows, index], patients.hospital[rows]
        whole = metrics.bootstrap({"auc": metrics.auc}, score, truth, hospital.tolist())["auc"].rounded()
        names, which = np.unique(hospital, return_inverse=True)
        random, drawn = np.random.default_rng(0), []
        for _ in range(DRAWS):
            inside = np.isin(which, random.choice(len(names), min(held, len(names)), replace=False))
            drawn.append(metrics.auc(score[inside], truth[inside]))
        middle, low, high = (metrics.rounded(float(np.nanpercentile(drawn, at))) for at in (50, 2.5, 97.5))
        spread[model] = {"auc_all_hospitals": whole, f"auc_of_{held}_hospitals": [middle, low, high]}
    spread["how"] = (
        "every patient answered by members that saw nobody of that hospital; [AUC, 2.5 %, 97.5 %], the first by "
        "bootstrap over hospitals, the second over groups as many as are held out; the recipe was chosen on "
        "development hospitals"
    )
    return spread
