"""Trains the murmur network on PASCAL set B: `python -m dapps.chdr.train --data DIR [--out DIR]`.

Splits by patient, cross-fits one member a development fold, calibrates and fixes the cut-offs on the out-of-fold
answers, then opens the test patients once and writes weights and card. Never imported by the service. Next:
`dapps/chdr/net.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional

from dapps import card, metrics
from dapps.chdr.data import Recordings, read
from dapps.chdr.measure import describe, measure
from dapps.chdr.net import Member, MurmurNet
from dapps.chdr.windows import WINDOW_SAMPLES, windows
from dapps.split import Split, by_patient

FOLDS, TEST_SHARE, SEED = 5, 0.25, 7
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 300, 32, 3e-3, 2e-2
POSITIVE_SHARE = 0.4

Array = np.ndarray[Any, np.dtype[Any]]


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


def fit(recordings: Recordings, rows: Array, seed: int, steps: int) -> Member:
    """One member trained on these rows."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    chance = draw_weights(recordings, rows)
    member = Member().train()
    optimiser = torch.optim.AdamW(member.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        batch = random.choice(rows, BATCH, p=chance)
        sound = np.stack([excerpt(recordings.sounds[index], random) for index in batch]).astype(np.float32)
        target = torch.from_numpy(recordings.label[batch].astype(np.float32))
        with torch.no_grad():
            bands, target = disturb(member.bands(torch.from_numpy(sound)), target, random)
        loss = functional.binary_cross_entropy_with_logits(member.from_bands(bands), target * 0.9 + 0.05)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"  step {step + 1}/{steps} loss {loss.item():.3f}", flush=True)
    return member.eval()


def score(logits: Any, recordings: Recordings, rows: Array) -> Array:
    """Mean logit over each recording's windows, float64 [n]."""
    with torch.inference_mode():
        answers = [float(logits(torch.from_numpy(windows(recordings.sounds[row]))).mean()) for row in rows]
    return np.array(answers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pascal_b/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where weights and card go")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number rounds differently")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    started_s = time.monotonic()
    recordings = read(options.data)
    used = recordings.patient[recordings.label >= 0].tolist()
    positive = {name: bool((recordings.label[recordings.patient == name] == 1).any()) for name in set(used)}
    split = by_patient(positive, FOLDS, TEST_SHARE, SEED)
    net = MurmurNet(FOLDS)
    outside = np.full(len(recordings.label), np.nan)
    for number, fold in enumerate(split.folds):
        member = fit(recordings, recordings.rows_of(split.development - fold), SEED * 100 + number, options.steps)
        rows = recordings.rows_of(fold)
        outside[rows] = score(member, recordings, rows)
        print(f"fold {number}: AUC {metrics.auc(outside[rows], recordings.label[rows]):.3f}", flush=True)
        net.members[number].load_state_dict(member.state_dict())
    finish(options.out, net, recordings, split, outside, f"{options.steps} steps a member", started_s)


def finish(
    out: Path, net: MurmurNet, recordings: Recordings, split: Split, outside: Array, effort: str, started_s: float
) -> None:
    """Calibrates, fixes the cut-offs, opens the test patients once, writes everything."""
    development, test = recordings.rows_of(split.development), recordings.rows_of(split.test)
    slope, offset = metrics.platt(outside[development], recordings.label[development])
    net.slope.fill_(slope)
    net.offset.fill_(offset)
    net.eval()

    def probability(logits: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-(slope * logits + offset))))

    at = card.choose(probability(outside[development]), recordings.label[development])
    extra = np.flatnonzero((recordings.label < 0) & np.isin(recordings.patient, sorted(split.test)))
    parts = {
        "development": (development, probability(outside[development])),
        "test": (test, probability(score(net.logits, recordings, test))),
        "extrastole": (extra, probability(score(net.logits, recordings, extra))),
    }
    weights = save({name: value.contiguous() for name, value in net.state_dict().items()})
    out.mkdir(parents=True, exist_ok=True)
    (out / "weights.safetensors").write_bytes(weights)
    effort = f"{effort}, {time.monotonic() - started_s:.0f} s on {torch.get_num_threads()} CPU threads"
    parameters = sum(value.numel() for value in net.parameters())
    origin = card.origin("python -m dapps.chdr.train --data DIR", effort, weights, parameters)
    told = measure(recordings, at, parts)
    card.write(out, describe(recordings, card.split_by_patient("murmur", SEED, TEST_SHARE, FOLDS), at, told, origin))
    print((out / "CARD.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
