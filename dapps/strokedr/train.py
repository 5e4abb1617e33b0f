"""Trains the haemorrhage network on CT-ICH: `python -m dapps.strokedr.train --data DIR [--out DIR]`.

Splits by patient, cross-fits one member a development fold, calibrates and fixes the cut-offs on the out-of-fold
answers, then opens the test patients once and writes weights and card. Never imported by the service. Next:
`dapps/strokedr/net.py`.
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
from dapps.split import Split, by_patient
from dapps.strokedr.data import Slices, read
from dapps.strokedr.measure import describe, measure
from dapps.strokedr.net import HaemorrhageNet, Member

FOLDS, TEST_SHARE, SEED = 4, 0.25, 7
EPOCHS, ITEMS_PER_EPOCH, BATCH, LEARNING_RATE, WEIGHT_DECAY = 24, 1000, 32, 3e-3, 5e-3
POSITIVE_SHARE = 0.35

Array = np.ndarray[Any, np.dtype[Any]]


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


def fit(slices: Slices, rows: Array, seed: int, epochs: int) -> Member:
    """One member trained on these rows, positives drawn more often than they occur."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    index = torch.from_numpy(rows)
    positive = slices.target[index, 0]
    weight = torch.where(positive > 0, POSITIVE_SHARE / positive.sum(), (1 - POSITIVE_SHARE) / (1 - positive).sum())
    member = Member().train()
    steps = epochs * ITEMS_PER_EPOCH // BATCH
    optimiser = torch.optim.AdamW(member.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        batch = index[torch.multinomial(weight, BATCH, replacement=True, generator=random)]
        logits = member(augment(slices.grey[batch], random))
        target = slices.target[batch] * 0.95 + 0.02
        loss = functional.binary_cross_entropy_with_logits(logits[:, 0], target[:, 0])
        loss = loss + 0.5 * functional.binary_cross_entropy_with_logits(logits[:, 1:], target[:, 1:])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"  step {step + 1}/{steps} loss {loss.item():.3f}", flush=True)
    return member.eval()


def logits_of(member: Member, slices: Slices, rows: Array) -> Array:
    """Haemorrhage logits of these rows, float64 [n]."""
    with torch.inference_mode():
        parts = [member(slices.grey[part])[:, 0] for part in torch.split(torch.from_numpy(rows), 64)]
    return torch.cat(parts).double().numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds ct_ich/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where weights and card go")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number rounds differently")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    started_s = time.monotonic()
    slices = read(options.data)
    positive = {str(name): bool(slices.truth(slices.rows_of(frozenset([name]))).any()) for name in set(slices.patient)}
    split = by_patient(positive, FOLDS, TEST_SHARE, SEED)
    net = HaemorrhageNet(FOLDS)
    outside = np.full(len(slices.patient), np.nan)
    for number, fold in enumerate(split.folds):
        member = fit(slices, slices.rows_of(split.development - fold), SEED * 100 + number, options.epochs)
        rows = slices.rows_of(fold)
        outside[rows] = logits_of(member, slices, rows)
        print(f"fold {number}: AUC {metrics.auc(outside[rows], slices.truth(rows)):.3f}", flush=True)
        net.members[number].load_state_dict(member.state_dict())
    finish(options.out, net, slices, split, outside, options.epochs, started_s)


def finish(
    out: Path, net: HaemorrhageNet, slices: Slices, split: Split, outside: Array, epochs: int, started_s: float
) -> None:
    """Calibrates, fixes the cut-offs, opens the test patients once, writes everything."""
    development, test = slices.rows_of(split.development), slices.rows_of(split.test)
    slope, offset = metrics.platt(outside[development], slices.truth(development))
    net.slope.fill_(slope)
    net.offset.fill_(offset)
    found = 1 / (1 + np.exp(-(slope * outside[development] + offset)))
    at = card.choose(found, slices.truth(development))
    net.eval()
    with torch.inference_mode():
        held = torch.cat([net(part)[:, 0] for part in torch.split(slices.grey[test], 64)]).double().numpy()
    parts = {"development": (development, found), "test": (test, held)}
    weights = save({name: value.contiguous() for name, value in net.state_dict().items()})
    out.mkdir(parents=True, exist_ok=True)
    (out / "weights.safetensors").write_bytes(weights)
    effort = f"{epochs} epochs, {time.monotonic() - started_s:.0f} s on {torch.get_num_threads()} CPU threads"
    parameters = sum(value.numel() for value in net.parameters())
    origin = card.origin("python -m dapps.strokedr.train --data DIR", effort, weights, parameters)
    told = measure(slices, at, parts)
    card.write(out, describe(slices, card.split_by_patient("haemorrhage", SEED, TEST_SHARE, FOLDS), at, told, origin))
    print((out / "CARD.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
