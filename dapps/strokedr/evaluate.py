"""Evaluates StrokeDr. on `DIR/ct_ich` and `DIR/ist` for `leben dapp evaluate`; never used by the service.

Runs the served networks and measures them as the cards do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dapps.api import Progress, Scored, Skipped
from dapps.evaluation import Unusable, calibration, card, logit, skipped
from dapps.strokedr import data, measure
from dapps.strokedr.prognosis import data as admissions
from dapps.strokedr.prognosis import measure as outcomes

if TYPE_CHECKING:
    from dapps.strokedr.net import HaemorrhageNet
    from dapps.strokedr.prognosis.net import PrognosisNet

PACKAGE = "dapps.strokedr"
PROGNOSIS = "dapps.strokedr.prognosis"
BATCH = 64


def haemorrhage(net: HaemorrhageNet, folder: Path, held_out: bool, progress: Progress) -> Iterator[Scored | Skipped]:
    """Each slice alone, each slice in its series, each series."""
    try:
        slices = data.read(folder, progress)
    except (FileNotFoundError, Unusable) as error:
        yield from skipped(measure.MODELS, error)
        return
    rows = slices.rows_of(card.held_out(PACKAGE)) if held_out else np.arange(len(slices.patient))
    if not len(rows):
        yield from (Skipped(model, "none of the held-out patients is in the folder") for model in measure.MODELS)
        return
    parts = []
    with torch.inference_mode():
        for at in range(0, len(rows), BATCH):
            progress("answering slices", at, len(rows))
            parts.append(net(slices.grey[rows[at : at + BATCH]])[0][:, 0].double().numpy())
    names = (measure.IN_SERIES, measure.SERIES)
    calibrations = {name: calibration(PACKAGE, name) for name in names}
    points = {name: card.cutoffs(PACKAGE, name) for name in measure.MODELS}
    yield from measure.scored(slices, rows, logit(np.concatenate(parts)), calibrations, points)


def prognosis(net: PrognosisNet, folder: Path, held_out: bool, progress: Progress) -> Iterator[Scored | Skipped]:
    """Both outcomes of every patient whose outcome is known."""
    try:
        progress("reading admissions", 0, 1)
        patients = admissions.read(folder)
    except (FileNotFoundError, Unusable) as error:
        yield from skipped(outcomes.MODELS, error)
        return
    rows = patients.of(card.held_out(PROGNOSIS)) if held_out else np.arange(len(patients.rows))
    if not len(rows):
        yield from (Skipped(model, "none of the held-out hospitals is in the folder") for model in outcomes.MODELS)
        return
    progress("answering admissions", 0, len(rows))
    with torch.inference_mode():
        probability = net(torch.from_numpy(patients.rows[rows]))[:, :, 0].double().numpy()
    points = {name: card.cutoffs(PROGNOSIS, name) for name in outcomes.MODELS}
    answered = {row.model: row for row in outcomes.scored(patients, rows, probability, points)}
    for model in outcomes.MODELS:
        yield answered.get(model) or Skipped(model, "of no patient in the folder is this outcome known")
