"""Measures a model on labelled data, calibrates it and writes its model card.

May import intake, packages, api and knowledge. `plots` and `figures` are imported as modules; only `figures` loads
matplotlib.
"""

from dapps.evaluation.calibration import Calibration, calibration, logit
from dapps.evaluation.card import INTERVALS, operating_points
from dapps.evaluation.labels import Unusable
from dapps.evaluation.measure import measured, skipped
from dapps.evaluation.patient_split import Split, by_patient

__all__ = [
    "INTERVALS",
    "Calibration",
    "Split",
    "Unusable",
    "by_patient",
    "calibration",
    "logit",
    "measured",
    "operating_points",
    "skipped",
]
