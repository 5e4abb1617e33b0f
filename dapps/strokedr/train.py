"""Trains the haemorrhage network on CT-ICH: `python -m dapps.strokedr.train --data DIR [--out DIR] [--compare]`.

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

from dapps.evaluation import Calibration, Split, ablations, by_patient, card, measured, metrics, training
from dapps.strokedr.data import Slices, read
from dapps.strokedr.framing import SIZE
from dapps.strokedr.measure import IN_SERIES, MODELS, SERIES, SLICE, describe, scored, whole_series
from dapps.strokedr.net import HaemorrhageNet, Member

FOLDS, TEST_SHARE, SEED = 4, 0.25, 7
BATCH, WEIGHT_DECAY = 32, 5e-3
POSITIVE_SHARE = 0.35

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How members are trained."""

    side: int = SIZE
    """Pixels a side that a member learns from."""
    seeds: tuple[int, ...] = (800,)
    """One member is trained without each fold from each of these, plus the fold's number."""
    averaged: float = 0.99
    """How slowly the weights that are kept follow those that learn; 0 keeps the last ones."""
    epochs: int = 24
    items_per_epoch: int = 1000


SHIPPED = Recipe()
OTHERS = {
    "96 pixels a side": Recipe(side=96),
    "last weights instead of averaged ones": Recipe(averaged=0.0),
    "half the epochs": Recipe(epochs=12),
    "two members a fold": Recipe(seeds=(800, 900)),
}


def augment(grey: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Random turn, scale, shift, mirror, and a shift of window, gain and noise: what another scanner would change."""
    count = len(grey)
    image = grey.float()

    def uniform(spread: float, *shape: int) -> torch.Tensor:
        return (torch.rand(count, *shape, generator=random) - 0.5) * spread

    turn, scale, shift = uniform(0.7), 1 + uniform(0.25), uniform(0.16, 2)
    mirror = torch.where(uniform(1.0) < 0, -1.0, 1.0)
    cosine, sine = torch.cos(turn) * scale, torch.sin(turn) * scale
    first = torch.stack([cosine * mirror, -sine, shift[:, 0]], 1)
    second = torch.stack([sine * mirror, cosine, shift[:, 1]], 1)
    grid = functional.affine_grid(torch.stack([first, second], 1), list(image.shape), align_corners=False)
    image = functional.grid_sample(image, grid, align_corners=False)
    inside = (image > 4) & (image < 250)
    image = torch.where(inside, image * (1 + uniform(0.2, 1, 1, 1)) + uniform(16.0, 1, 1, 1), image)
    grain = torch.randn(image.shape, generator=random) * (uniform(8.0, 1, 1, 1).abs() * 2)
    return (image + grain * (image > 4)).clamp(0, 255)


def fit(slices: Slices, rows: Array, seed: int, recipe: Recipe) -> Member:
    """One member trained on these rows, positives drawn more often than they occur."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    index = torch.from_numpy(rows)
    positive = slices.target[index, 0]
    weight = torch.where(positive > 0, POSITIVE_SHARE / positive.sum(), (1 - POSITIVE_SHARE) / (1 - positive).sum())
    member = Member().train()

    def loss_of_batch() -> torch.Tensor:
        batch = index[torch.multinomial(weight, BATCH, replacement=True, generator=random)]
        logits = member(augment(slices.grey[batch], random))
        target = slices.target[batch] * 0.95 + 0.02
        loss = functional.binary_cross_entropy_with_logits(logits[:, 0], target[:, 0])
        return loss + 0.5 * functional.binary_cross_entropy_with_logits(logits[:, 1:], target[:, 1:])

    steps = recipe.epochs * recipe.items_per_epoch // BATCH
    return training.fit(member, loss_of_batch, steps=steps, weight_decay=WEIGHT_DECAY, averaged=recipe.averaged)


def logits_of(member: Member, slices: Slices, rows: Array) -> Array:
    """Haemorrhage logits of these rows, float64 [n]."""
    with torch.inference_mode():
        parts = [member(slices.grey[part])[:, 0] for part in torch.split(torch.from_numpy(rows), 64)]
    return torch.cat(parts).double().numpy()


def cross_fit(slices: Slices, split: Split, recipe: Recipe) -> tuple[list[Member], Array]:
    """Members trained without each fold, and each development row's mean logit of those that have not seen it."""
    side = (recipe.side, recipe.side)
    if recipe.side != SIZE:
        small = functional.interpolate(slices.grey.float(), side, mode="bilinear", antialias=True)
        slices = replace(slices, grey=small.round().byte())
    outside = np.full(len(slices.patient), np.nan)
    members = []
    for number, fold in enumerate(split.folds):
        rows = slices.rows_of(fold)
        others = slices.rows_of(split.development - fold)
        mine = [fit(slices, others, seed + number, recipe) for seed in recipe.seeds]
        outside[rows] = np.mean([logits_of(member, slices, rows) for member in mine], axis=0)
        print(f"fold {number}: AUC {metrics.auc(outside[rows], slices.truth(rows)):.3f}", flush=True)
        members += mine
    return members, outside


def aucs(slices: Slices, rows: Array, logits: Array) -> dict[str, float]:
    """AUC of each of MODELS."""
    smoothed, joint, has, _ = whole_series(slices, rows, logits)
    truth = slices.truth(rows)
    return dict(
        zip(
            MODELS,
            (metrics.auc(logits, truth), metrics.auc(smoothed, truth), metrics.auc(joint, has)),
            strict=True,
        )
    )


def compare(slices: Slices, split: Split, out: Path) -> None:
    """Measures every idea on the development folds."""
    development = slices.rows_of(split.development)

    def measure(recipe: Recipe) -> dict[str, float]:
        return aucs(slices, development, cross_fit(slices, split, recipe)[1][development])

    training.compare(out, {"shipped": SHIPPED, **OTHERS}, measure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = training.command_line(__doc__, "ct_ich", Path(__file__).parent, "an hour")
    parser.add_argument("--epochs", type=int, default=SHIPPED.epochs)
    parser.add_argument("--items", type=int, default=SHIPPED.items_per_epoch, help="slices drawn an epoch")
    options = training.started(parser, arguments)
    slices = read(options.data)
    positive = {str(name): bool(slices.truth(slices.rows_of(frozenset([name]))).any()) for name in set(slices.patient)}
    split = by_patient(positive, FOLDS, TEST_SHARE, SEED)
    if options.compare:
        return compare(slices, split, options.out)
    started_s = time.monotonic()
    recipe = replace(SHIPPED, epochs=options.epochs, items_per_epoch=options.items)
    members, outside = cross_fit(slices, split, recipe)
    effort = f"{len(members)} members, {recipe.epochs} epochs each, {time.monotonic() - started_s:.0f} s"
    finish(options.out, members, slices, split, outside, f"{effort} on {torch.get_num_threads()} CPU threads")


def finish(out: Path, members: list[Member], slices: Slices, split: Split, outside: Array, effort: str) -> None:
    """Calibrates, fixes the cut-offs, opens the held-out patients once, writes everything."""
    net = HaemorrhageNet(len(members)).eval()
    training.fill(net.members, members)
    development, test = slices.rows_of(split.development), slices.rows_of(split.test)
    truth = slices.truth(development)
    alone = Calibration(*metrics.platt(outside[development], truth))
    net.slope.fill_(alone.slope)
    net.offset.fill_(alone.offset)
    logits = alone.slope * outside[development] + alone.offset
    smoothed, joint, has, _ = whole_series(slices, development, logits)
    calibrations = {
        IN_SERIES: Calibration(*metrics.platt(smoothed, truth)),
        SERIES: Calibration(*metrics.platt(joint, has)),
    }
    points = {
        SLICE: card.choose(1 / (1 + np.exp(-logits)), truth),
        IN_SERIES: card.choose(calibrations[IN_SERIES].probability(smoothed), truth),
        SERIES: card.choose(calibrations[SERIES].probability(joint), has),
    }
    with torch.inference_mode():
        held = torch.cat([net.logits(part) for part in torch.split(slices.grey[test], 64)]).double().numpy()
    held = alone.slope * held + alone.offset
    results = {
        part: {row.model: measured(row) for row in scored(slices, rows, answers, calibrations, points)}
        for part, rows, answers in (("development", development, logits), ("held_out", test, held))
    }
    weights, parameters = training.write_weights(out, net)
    origin = card.origin("python -m dapps.strokedr.train --data DIR", effort, weights, parameters)
    rule = f"by patient, stratified by any haemorrhage, seed {SEED}, {TEST_SHARE:.0%} held out, {FOLDS} folds"
    measurements = (calibrations, points, results, ablations.read(out), origin)
    card.write(out, describe(slices, rule, split, *measurements))
    print((out / "CARD.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
