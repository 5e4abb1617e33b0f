"""Trains the murmur network on PASCAL set B: `python -m dapps.chdr.train --data DIR [--out DIR] [--compare]`.

Splits by patient, cross-fits members without each development fold, calibrates and fixes the cut-offs on the
out-of-fold answers, then opens the held-out patients once and writes weights and card. `--compare` measures ideas on
the development folds alone. Never imported by the service.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from dapps.chdr.data import Recordings, read
from dapps.chdr.measure import PATIENT, RECORDING, by_patients, describe, scored
from dapps.chdr.net import Member, MurmurNet
from dapps.chdr.windows import WINDOW_SAMPLES, windows
from dapps.evaluation import Calibration, Split, ablations, by_patient, card, measured, metrics, training

FOLDS, TEST_SHARE, SEED = 5, 0.25, 7
BATCH, WEIGHT_DECAY = 32, 2e-2
POSITIVE_SHARE = 0.4

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How members are trained."""

    steps: int = 600
    seeds: tuple[int, ...] = (900, 1100, 1200)
    """One member is trained without each fold from each of these, plus the fold's number."""
    averaged: float = 0.99
    """How slowly the weights that are kept follow those that learn; 0 keeps the last ones."""
    disturbed: bool = True


SHIPPED = Recipe()
ONE = Recipe(seeds=(1100,))
OTHERS = {
    "one member a fold": ONE,
    "one member, last weights instead of averaged ones": replace(ONE, averaged=0.0),
    "one member, half the steps": replace(ONE, steps=300),
    "one member, spectrograms not disturbed": replace(ONE, disturbed=False),
}


def excerpt(sound: Array, random: np.random.Generator) -> Array:
    """A random window, played up to 14 % faster or slower, with a little noise."""
    length = int(WINDOW_SAMPLES * random.uniform(0.88, 1.14))
    sound = np.tile(sound, -(-length // len(sound)))
    start = int(random.integers(0, len(sound) - length + 1))
    piece = np.interp(np.linspace(0, length - 1, WINDOW_SAMPLES), np.arange(length), sound[start : start + length])
    return np.asarray(piece + random.standard_normal(WINDOW_SAMPLES) * piece.std() * random.uniform(0, 0.1))


def disturb(
    bands: torch.Tensor, target: torch.Tensor, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Another stethoscope's tilt, hidden bands and moments, and mixtures of pairs."""
    count, height, width = bands.shape
    tilt = torch.from_numpy(random.normal(0, 0.25, (count, 1, 1)).astype(np.float32))
    bands = bands + tilt * torch.linspace(-1, 1, height)[None, :, None]
    for row in range(count):
        if random.random() < 0.5:
            start = int(random.integers(0, height - 4))
            bands[row, start : start + 4] = 0
        if random.random() < 0.5:
            start = int(random.integers(0, width - 15))
            bands[row, :, start : start + 15] = 0
    share, other = float(random.beta(0.4, 0.4)), torch.from_numpy(random.permutation(count))
    return share * bands + (1 - share) * bands[other], share * target + (1 - share) * target[other]


def draw_weights(recordings: Recordings, rows: Array) -> Array:
    """Chance of each row in a batch: murmurs more often than they occur, a patient's many recordings less."""
    patients, truth = recordings.patient[rows], recordings.label[rows]
    weight = np.array([1 / np.sqrt(np.sum(patients == name)) for name in patients])
    weight[truth == 1] *= POSITIVE_SHARE / weight[truth == 1].sum()
    weight[truth == 0] *= (1 - POSITIVE_SHARE) / weight[truth == 0].sum()
    return np.asarray(weight / weight.sum())


def fit(recordings: Recordings, rows: Array, seed: int, recipe: Recipe) -> Member:
    """One member trained on these rows."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    chance = draw_weights(recordings, rows)
    member = Member().train()

    def loss_of_batch() -> torch.Tensor:
        batch = random.choice(rows, BATCH, p=chance)
        sound = np.stack([excerpt(recordings.sounds[index], random) for index in batch]).astype(np.float32)
        target = torch.from_numpy(recordings.label[batch].astype(np.float32))
        with torch.no_grad():
            bands = member.bands(torch.from_numpy(sound))
            if recipe.disturbed:
                bands, target = disturb(bands, target, random)
        return functional.binary_cross_entropy_with_logits(member.from_bands(bands), target * 0.9 + 0.05)

    return training.fit(member, loss_of_batch, steps=recipe.steps, weight_decay=WEIGHT_DECAY, averaged=recipe.averaged)


def score(logits: Any, recordings: Recordings, rows: Array) -> Array:
    """Mean logit over each recording's windows, float64 [n]."""
    with torch.inference_mode():
        answers = [float(logits(torch.from_numpy(windows(recordings.sounds[row]))).mean()) for row in rows]
    return np.array(answers)


def cross_fit(recordings: Recordings, split: Split, recipe: Recipe) -> tuple[list[Member], Array]:
    """Members trained without each fold, and each development row's mean logit of those that have not heard it."""
    outside = np.full(len(recordings.label), np.nan)
    members = []
    for number, fold in enumerate(split.folds):
        rows, others = recordings.rows_of(fold), recordings.rows_of(split.development - fold)
        mine = [fit(recordings, others, seed + number, recipe) for seed in recipe.seeds]
        outside[rows] = np.mean([score(member, recordings, rows) for member in mine], axis=0)
        print(f"fold {number}: AUC {metrics.auc(outside[rows], recordings.label[rows]):.3f}", flush=True)
        members += mine
    return members, outside


def aucs(recordings: Recordings, rows: Array, logits: Array) -> dict[str, float]:
    """AUC by recording and by patient."""
    mean, has, _ = by_patients(recordings, rows, logits)
    return {RECORDING: metrics.auc(logits, recordings.label[rows]), PATIENT: metrics.auc(mean, has)}


def compare(recordings: Recordings, split: Split, out: Path) -> None:
    """Measures every idea on the development folds."""
    development = recordings.rows_of(split.development)

    def measure(recipe: Recipe) -> dict[str, float]:
        return aucs(recordings, development, cross_fit(recordings, split, recipe)[1][development])

    training.compare(out, {"shipped": SHIPPED, **OTHERS}, measure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = training.command_line(__doc__, "pascal_b", Path(__file__).parent, "half an hour")
    parser.add_argument("--steps", type=int, default=SHIPPED.steps)
    options = training.started(parser, arguments)
    recordings = read(options.data)
    used = recordings.patient[recordings.label >= 0].tolist()
    positive = {name: bool((recordings.label[recordings.patient == name] == 1).any()) for name in set(used)}
    split = by_patient(positive, FOLDS, TEST_SHARE, SEED)
    if options.compare:
        return compare(recordings, split, options.out)
    started_s = time.monotonic()
    members, outside = cross_fit(recordings, split, replace(SHIPPED, steps=options.steps))
    effort = f"{len(members)} members, {options.steps} steps each, {time.monotonic() - started_s:.0f} s"
    finish(options.out, members, recordings, split, outside, f"{effort} on {torch.get_num_threads()} CPU threads")


def finish(out: Path, members: list[Member], recordings: Recordings, split: Split, outside: Array, effort: str) -> None:
    """Calibrates, fixes the cut-offs, opens the held-out patients once, writes everything."""
    net = MurmurNet(len(members)).eval()
    training.fill(net.members, members)
    development, test = recordings.rows_of(split.development), recordings.rows_of(split.test)
    truth = recordings.label[development]
    alone = Calibration(*metrics.platt(outside[development], truth))
    net.slope.fill_(alone.slope)
    net.offset.fill_(alone.offset)
    logits = alone.slope * outside[development] + alone.offset
    mean, has, _ = by_patients(recordings, development, logits)
    whole = Calibration(*metrics.platt(mean, has))
    points = {
        RECORDING: card.choose(1 / (1 + np.exp(-logits)), truth),
        PATIENT: card.choose(whole.probability(mean), has),
    }
    held = score(lambda wave: net.logits(wave).mean(0), recordings, test)
    results = {
        part: {row.model: measured(row) for row in scored(recordings, rows, answers, whole, points)}
        for part, rows, answers in (("development", development, logits), ("held_out", test, held))
    }
    weights, parameters = training.write_weights(out, net)
    origin = card.origin("python -m dapps.chdr.train --data DIR", effort, weights, parameters)
    rule = f"by patient, stratified by any murmur, seed {SEED}, {TEST_SHARE:.0%} held out, {FOLDS} folds"
    card.write(out, describe(recordings, rule, split, whole, points, results, ablations.read(out), origin))
    print((out / "CARD.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
