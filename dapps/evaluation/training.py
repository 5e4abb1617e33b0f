"""Trains the members of an ensemble and saves it: the part that the training scripts of all models share.

A script supplies the loss of a step; its own module keeps data, augmentation and calibration. Loads torch, so it is
imported as a module and never by the service.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dapps.evaluation import ablations

LEARNING_RATE = 3e-3
Member = TypeVar("Member", bound=nn.Module)
Recipe = TypeVar("Recipe")


def fit(
    member: Member, loss_of_batch: Callable[[], torch.Tensor], *, steps: int, weight_decay: float, averaged: float
) -> Member:
    """Trains a member and returns it in evaluation mode.

    Args:
        member: in training mode.
        loss_of_batch: draws a batch and returns its loss.
        steps: number of batches.
        weight_decay: of AdamW.
        averaged: how slowly the averaged weights follow the learning ones; 0 returns the last weights.
    """
    average = get_ema_multi_avg_fn(averaged)  # type: ignore[no-untyped-call]
    mean = AveragedModel(member, multi_avg_fn=average, use_buffers=True)
    optimiser = torch.optim.AdamW(member.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    for step in range(1, steps + 1):
        loss = loss_of_batch()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        mean.update_parameters(member)
        if step % 200 == 0:
            print(f"  step {step}/{steps} loss {loss.item():.3f}", flush=True)
    if averaged:
        member.load_state_dict(mean.module.state_dict())
    return member.eval()


def fill(members: nn.ModuleList, trained: Iterable[nn.Module]) -> None:
    """Copies the weights of trained members into those of an ensemble, which are as many."""
    for member, source in zip(members, trained, strict=True):
        member.load_state_dict(source.state_dict())


def write_weights(folder: Path, net: nn.Module) -> tuple[bytes, int]:
    """Writes `weights.safetensors`; returns its bytes and the number of parameters."""
    weights = save({name: value.contiguous() for name, value in net.state_dict().items()})
    (folder / "weights.safetensors").write_bytes(weights)
    return weights, sum(value.numel() for value in net.parameters())


def compare(out: Path, recipes: Mapping[str, Recipe], measure: Callable[[Recipe], Mapping[str, float]]) -> None:
    """Writes the table of ablations: `measure` gives a recipe's AUCs on the development folds, by model."""
    rows: list[dict[str, str]] = []
    for name, recipe in recipes.items():
        print(name, flush=True)
        rows.append(ablations.row(name, measure(recipe), name))
        ablations.write(out, rows)


def command_line(description: str | None, data: str, out: Path, minutes: str) -> argparse.ArgumentParser:
    """The options of every training script.

    Args:
        description: the script's docstring.
        data: the folder that `--data` holds.
        out: where weights and card go unless `--out` is given.
        minutes: how long `--compare` takes.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {data}/")
    parser.add_argument("--out", type=Path, default=out, help="where weights and card go")
    parser.add_argument("--compare", action="store_true", help=f"measure this and other ideas, and stop; {minutes}")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    return parser


def started(parser: argparse.ArgumentParser, arguments: Any) -> argparse.Namespace:
    """Parses the arguments, sets the threads and makes the output folder."""
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    return options
