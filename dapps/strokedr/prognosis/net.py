"""Defines the prognosis network: admission row [n,20] in, probabilities of a poor outcome and of early death out.

A member adds a linear model and a small perceptron over the same features, so that it is hardly worse than logistic
regression. Words become one column each, "unknown" a column of its own; numbers are clipped to the training range.
Every row depends on itself alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dapps.strokedr.prognosis.admission import LEVELS, NUMBERS

TARGETS = ("dead or dependent at 6 months", "dead by day 14", "dead at 6 months")
"""Training targets: the first SERVED are answered; the last one helps to learn the second."""
SERVED = 2
LOW_ENDS, HIGH_ENDS = (30.0, 0.5, 80.0), (100.0, 48.0, 260.0)
HINGES = ((50.0, 60.0, 70.0, 80.0, 90.0), (6.0, 24.0), (120.0, 140.0, 180.0, 220.0))
WIDTH = NUMBERS + sum(map(len, HINGES)) + NUMBERS + sum(LEVELS) + len(LEVELS)


class Features(nn.Module):
    """Admission rows [n,20] -> [n,WIDTH]: clipped numbers, hinges, known or not, one column a word."""

    def forward(self, rows: Tensor) -> Tensor:
        """Float [n,WIDTH]."""
        parts = []
        for index in range(NUMBERS):
            raw = rows[:, index : index + 1].float()
            present = (raw >= 0).float()
            low, high = LOW_ENDS[index], HIGH_ENDS[index]
            value = raw.clamp(low, high)
            spread = (high - low) / 4
            parts.append(present * (value - (low + high) / 2) / spread)
            parts += [present * (value - hinge).clamp_min(0) / spread for hinge in HINGES[index]]
            parts.append(present)
        for index, levels in enumerate(LEVELS, NUMBERS):
            place = (rows[:, index] + 0.5).floor().clamp(-1, levels - 1).long() + 1
            parts.append(functional.one_hot(place, levels + 1).float())
        return torch.cat(parts, dim=1)


class Member(nn.Module):
    """One network: rows [n,20] -> logits [n,len(TARGETS)]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = Features()
        self.line = nn.Linear(WIDTH, len(TARGETS))
        self.first, self.second = nn.Linear(WIDTH, width), nn.Linear(width, width)
        self.last = nn.Linear(width, len(TARGETS))
        self.dropout = nn.Dropout(0.3)
        nn.init.zeros_(self.last.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits [n,len(TARGETS)]."""
        x = self.features(rows)
        bent = self.dropout(functional.gelu(self.first(x)))
        bent = self.dropout(functional.gelu(self.second(bent)))
        answer: Tensor = self.line(x) + self.last(bent)
        return answer


class PrognosisNet(nn.Module):
    """All members, each through the calibration that was fitted out of fold."""

    slope: Tensor
    offset: Tensor

    def __init__(self, members: int = 5) -> None:
        super().__init__()
        self.members = nn.ModuleList(Member() for _ in range(members))
        self.register_buffer("slope", torch.ones(SERVED))
        self.register_buffer("offset", torch.zeros(SERVED))

    def logits(self, rows: Tensor) -> Tensor:
        """Calibrated logits of every member [members,n,SERVED]."""
        raw = torch.stack([member(rows)[:, :SERVED] for member in self.members])
        return self.slope * raw + self.offset

    def forward(self, rows: Tensor) -> Tensor:
        """Probability, lowest and highest of any member, for each served target: [n,SERVED,3]."""
        logits = self.logits(rows)
        return torch.sigmoid(torch.stack([logits.mean(0), logits.amin(0), logits.amax(0)], dim=-1))
