"""Trains the prognosis network: `python -m dapps.strokedr.prognosis.train --data DIR [--out DIR] [--compare]`.

Splits by hospital, cross-fits one member a development fold, calibrates and fixes the cut-offs on the out-of-fold
answers, then opens the held-out hospitals once and writes weights and card. `--compare` measures ideas on
the development folds alone. Never imported by the service.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from dapps.api import Cutoffs
from dapps.evaluation import Split, ablations, by_patient, card, measured, metrics, training
from dapps.strokedr.prognosis.admission import NAMES, UNKNOWN
from dapps.strokedr.prognosis.data import Patients, read
from dapps.strokedr.prognosis.measure import MODELS, describe, scored
from dapps.strokedr.prognosis.net import SERVED, Member, PrognosisNet
from dapps.strokedr.prognosis.spread import over_hospitals

FOLDS, TEST_SHARE, SEED = 5, 0.2, 7
BATCH, LEARNING_RATE = 256, 3e-3

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a member is trained."""

    bent: bool = True
    hidden_share: float = 0.1
    """Chance that a known field is hidden from the network, so that it learns to do without."""
    weight_decay: float = 0.3
    epochs: int = 20
    country_levels: bool = False
    """Each country of the training has a level of its own, which is not served: the inputs need not stand for it."""
    without: tuple[str, ...] = ()
    """Fields that are hidden always, in use as well."""


SHIPPED = Recipe()
OTHERS = {
    "straight line only (logistic regression on hinges)": Recipe(bent=False),
    "no field ever hidden": Recipe(hidden_share=0.0),
    "a quarter of the fields hidden": Recipe(hidden_share=0.25),
    "little weight decay": Recipe(weight_decay=0.01),
    "half the epochs": Recipe(epochs=10),
}
LEVELS, NO_CT = "a level of its own for each country of the training", "without CT made and infarct visible"
ABROAD = {
    "shipped": SHIPPED,
    LEVELS: Recipe(country_levels=True),
    NO_CT: Recipe(without=("ct_before", "infarct_visible")),
}
"""Ideas for a country of which the training saw nobody: measured by country as well."""


def fit(patients: Patients, rows: Array, seed: int, recipe: Recipe) -> Member:
    """One member trained on these rows, unknown outcomes left out of the loss."""
    torch.manual_seed(seed)
    member = Member().train()
    if not recipe.bent:
        member.last.requires_grad_(False)
    inputs, targets = torch.from_numpy(patients.rows[rows]), torch.from_numpy(patients.targets[rows]).float()
    names, country = np.unique(patients.country[rows], return_inverse=True)
    level = torch.zeros(len(names), targets.shape[1], requires_grad=recipe.country_levels)
    groups: list[dict[str, Any]] = [{"params": member.parameters()}]
    if recipe.country_levels:
        groups.append({"params": [level], "weight_decay": 0.0})
    steps = max(1, recipe.epochs * len(rows) // BATCH)
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(rows), (BATCH,))
        seen, target = inputs[batch], targets[batch]
        seen = torch.where(torch.rand_like(seen) < recipe.hidden_share, UNKNOWN, without(seen, recipe))
        answered = (target >= 0).float()
        loss = functional.binary_cross_entropy_with_logits(
            member(seen) + level[country[batch]], target.clamp_min(0), reduction="none"
        )
        optimiser.zero_grad()
        ((loss * answered).sum() / answered.sum().clamp_min(1)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return member.eval()


def without(rows: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The rows without the fields that the recipe hides."""
    visible = torch.tensor([name not in recipe.without for name in NAMES])
    return torch.where(visible, rows, UNKNOWN)


def cross_fit(patients: Patients, folds: Sequence[Array], recipe: Recipe) -> tuple[list[Member], Array]:
    """A member trained without each fold, and every row's logits [n,SERVED] from the member that has not seen it."""
    everyone = np.concatenate(folds)
    outside = np.full((len(patients.rows), SERVED), np.nan)
    members = []
    for number, fold in enumerate(folds):
        members.append(fit(patients, np.setdiff1d(everyone, fold), SEED * 100 + number, recipe))
        with torch.inference_mode():
            rows = without(torch.from_numpy(patients.rows[fold]), recipe)
            outside[fold] = members[-1](rows)[:, :SERVED].double().numpy()
        print(f"  fold {number + 1} of {len(folds)} done", flush=True)
    return members, outside


def aucs(patients: Patients, rows: Array, logits: Array) -> dict[str, float]:
    """AUC of each served target."""
    answered = [rows[patients.targets[rows, index] >= 0] for index in range(SERVED)]
    return {
        MODELS[index]: metrics.auc(logits[some, index], patients.targets[some, index])
        for index, some in enumerate(answered)
    }


def within_countries(patients: Patients, rows: Array, logits: Array) -> dict[str, float]:
    """AUC of each served target within a country, the mean over countries of 50 patients or more by their number."""
    by_model: dict[str, list[tuple[float, int]]] = {model: [] for model in MODELS}
    for name in sorted(set(patients.country[rows].tolist())):
        some = rows[patients.country[rows] == name]
        for model, value in aucs(patients, some, logits).items():
            if len(some) >= 50 and not np.isnan(value):
                by_model[model].append((value, len(some)))
    return {
        f"{model} within countries": sum(value * n for value, n in pairs) / max(sum(n for _, n in pairs), 1)
        for model, pairs in by_model.items()
    }


def compare(patients: Patients, split: Split, out: Path) -> None:
    """Measures every idea on the development folds by hospital, and those for other countries by country as well."""
    folds = [patients.of(fold) for fold in split.folds]
    development = np.concatenate(folds)
    rows = []
    for name, recipe in {"shipped": SHIPPED, **OTHERS, **ABROAD}.items():
        print(name, flush=True)
        rows.append(ablations.row(name, aucs(patients, development, cross_fit(patients, folds, recipe)[1]), name))
    countries = patients.country[development]
    folds = [development[countries == name] for name in sorted(set(countries.tolist()))]
    for name, recipe in ABROAD.items():
        print(name, flush=True)
        logits = cross_fit(patients, folds, recipe)[1]
        measured_aucs = aucs(patients, development, logits) | within_countries(patients, development, logits)
        rows.append(
            ablations.row(
                f"{name}, each country left out in turn", measured_aucs, "a check" if name == "shipped" else name
            )
        )
    ablations.write(out, rows)


def country_weight(country: Array) -> Array:
    """Weight of each patient in the calibration: count of its country to the power of -1/4.

    Outcome at the same admission record differs among countries; a third of the patients come from one, whose level
    would otherwise be taken for everybody's.
    """
    names, count = np.unique(country, return_counts=True)
    weight = dict(zip(names.tolist(), count**-0.25, strict=True))
    return np.array([weight[name] for name in country.tolist()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = training.started(training.command_line(__doc__, "ist", Path(__file__).parent, "minutes"), arguments)
    started_s = time.monotonic()
    patients = read(options.data)
    # Stratified by the country that gave a third of the patients.
    country = dict(zip(patients.hospital.tolist(), patients.country.tolist(), strict=True))
    split = by_patient({name: place == "UK" for name, place in country.items()}, FOLDS, TEST_SHARE, SEED)
    if options.compare:
        return compare(patients, split, options.out)
    members, outside = cross_fit(patients, [patients.of(fold) for fold in split.folds], SHIPPED)
    finish(options.out, members, patients, split, outside, started_s)


def finish(
    out: Path, members: list[Member], patients: Patients, split: Split, outside: Array, started_s: float
) -> None:
    """Calibrates, fixes the cut-offs, opens the held-out hospitals once, writes everything."""
    net = PrognosisNet(len(members)).eval()
    training.fill(net.members, members)
    development, test = patients.of(split.development), patients.of(split.test)
    points: dict[str, Cutoffs] = {}
    for index, model in enumerate(MODELS):
        rows = development[patients.targets[development, index] >= 0]
        truth = patients.targets[rows, index]
        slope, offset = metrics.platt(outside[rows, index], truth, country_weight(patients.country[rows]))
        net.slope[index], net.offset[index] = slope, offset
        points[model] = card.choose(1 / (1 + np.exp(-(slope * outside[rows, index] + offset))), truth)
    calibrated = 1 / (1 + np.exp(-(outside * net.slope.numpy() + net.offset.numpy())))
    with torch.inference_mode():
        held = net(torch.from_numpy(patients.rows[test]))[:, :, 0].double().numpy()
    results = {
        part: {row.model: measured(row) for row in scored(patients, rows, probability, points)}
        for part, rows, probability in (
            ("development", development, calibrated[development]),
            ("held_out", test, held),
        )
    }
    everyone = calibrated.copy()
    everyone[test] = held
    spread = over_hospitals(patients, everyone, MODELS, len(split.test))
    weights, parameters = training.write_weights(out, net)
    effort = f"{SHIPPED.epochs} epochs a member, {time.monotonic() - started_s:.0f} s on {torch.get_num_threads()} CPU"
    origin = card.origin("python -m dapps.strokedr.prognosis.train --data DIR", effort, weights, parameters)
    rule = f"by hospital, stratified by country UK or not, seed {SEED}, {TEST_SHARE:.0%} held out, {FOLDS} folds"
    card.write(out, describe(patients, rule, split, points, results, spread, ablations.read(out), origin))
    print((out / "CARD.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
