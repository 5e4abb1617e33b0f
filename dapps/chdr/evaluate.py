"""Evaluates CHDr. on a labelled folder, `DIR/pascal_b`, for `leben dapp evaluate`; never used by the service.

Runs the served network and measures it as the card does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dapps.api import Progress, Scored, Skipped
from dapps.chdr import data, measure
from dapps.chdr.windows import windows
from dapps.evaluation import Unusable, calibration, card, skipped

if TYPE_CHECKING:
    from dapps.chdr.net import MurmurNet

PACKAGE = "dapps.chdr"


def murmur(net: MurmurNet, folder: Path, held_out: bool, progress: Progress) -> Iterator[Scored | Skipped]:
    """Each recording, and each patient over all recordings."""
    try:
        recordings = data.read(folder, progress)
    except (FileNotFoundError, Unusable) as error:
        yield from skipped(measure.MODELS, error)
        return
    everyone = frozenset(recordings.patient.tolist())
    rows = recordings.rows_of(card.held_out(PACKAGE) if held_out else everyone)
    if not len(rows):
        what = "of the held-out patients " if held_out else "labelled normal or murmur "
        yield from (Skipped(model, f"no recording {what}is in the folder") for model in measure.MODELS)
        return
    logits = []
    with torch.inference_mode():
        for number, row in enumerate(rows):
            progress("answering recordings", number, len(rows))
            logits.append(float(net.logits(torch.from_numpy(windows(recordings.sounds[row]))).mean()))
    points = {name: card.cutoffs(PACKAGE, name) for name in measure.MODELS}
    whole = calibration(PACKAGE, measure.PATIENT)
    yield from measure.scored(recordings, rows, np.array(logits), whole, points)
