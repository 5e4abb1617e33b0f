"""The haemorrhage network: a few small convolutional members whose logits are averaged, then calibrated.

Input is the framed slice of `dapps/strokedr/framing.py` as uint8 grey [n,1,128,128]; contrast channels are made here,
so training and service cannot differ. Every row depends on itself alone (batch norm only ever runs on its frozen
statistics).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

TARGETS = ("any", "Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")
"""Training targets: only the first is served, the others guide the features."""


class Contrasts(nn.Module):
    """uint8 or float grey [n,1,S,S] of window 40/120 HU -> tissue, fresh blood, bone and side difference."""

    def forward(self, grey: Tensor) -> Tensor:
        """Float [n,4,S,S], each roughly within -1..1."""
        hu = grey.float() * (120.0 / 255.0) - 20.0
        tissue = ((hu - 32.0) / 24.0).clamp(-1.5, 1.5)
        bone = ((hu - 88.0) / 10.0).clamp(0.0, 1.0)
        blood = ((hu - 44.0) / 24.0).clamp(0.0, 1.0) * (1.0 - bone)
        smooth = functional.avg_pool2d(tissue * (1.0 - bone), 5, stride=1, padding=2)
        return torch.cat([tissue, blood, bone, smooth - smooth.flip(-1)], dim=1)


class Block(nn.Module):
    """Halves the resolution, then adds one residual convolution."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(outside)
        self.same = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.same_norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """[n,inside,h,w] -> [n,outside,h/2,w/2]."""
        x = functional.relu(self.down_norm(self.down(x)))
        return functional.relu(x + self.same_norm(self.same(x)))


class Member(nn.Module):
    """One network: [n,1,S,S] grey -> logits [n,len(TARGETS)]."""

    def __init__(self, width: int = 14) -> None:
        super().__init__()
        self.contrasts = Contrasts()
        self.stem = nn.Conv2d(4, width, 5, stride=2, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, 2 * width), Block(2 * width, 4 * width), Block(4 * width, 4 * width))
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8 * width, len(TARGETS))

    def forward(self, grey: Tensor) -> Tensor:
        """Logits [n,len(TARGETS)]."""
        return self.read_out(self.features(grey))

    def features(self, grey: Tensor) -> Tensor:
        """[n,1,S,S] grey -> [n,4*width,S/16,S/16], never negative."""
        x = functional.relu(self.stem_norm(self.stem(self.contrasts(grey))))
        answer: Tensor = self.blocks(x)
        return answer

    def read_out(self, x: Tensor) -> Tensor:
        """Logits [n,len(TARGETS)] from the features."""
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        answer: Tensor = self.head(self.dropout(pooled))
        return answer

    def saliency(self, x: Tensor) -> Tensor:
        """How much each place adds to the haemorrhage logit [n,S/16,S/16]: exact, because the head is linear.

        A feature's mean is shared among all places by their part in it; its maximum belongs to the place that has it.
        """
        _, channels, height, width = x.shape
        spread, top = self.head.weight[0, :channels], self.head.weight[0, channels:]
        shared = (x * spread[:, None, None]).sum(1) / (height * width)
        flat = x.flatten(2)
        best = flat.argmax(2, keepdim=True)
        peak = torch.zeros_like(flat).scatter_(2, best, flat.gather(2, best))
        answer: Tensor = shared + (peak.view_as(x) * top[:, None, None]).sum(1)
        return answer


class HaemorrhageNet(nn.Module):
    """The mean logit of all members, through the calibration that was fitted out of fold: probability [n,1]."""

    slope: Tensor
    offset: Tensor

    def __init__(self, members: int = 4) -> None:
        super().__init__()
        self.members = nn.ModuleList(Member() for _ in range(members))
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def logits(self, grey: Tensor) -> Tensor:
        """Uncalibrated mean logit [n]."""
        return torch.stack([member(grey)[:, 0] for member in self.members]).mean(0)

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of haemorrhage with the lowest and highest of any member [n,3], and saliency [n,S/16,S/16]."""
        features = [member.features(grey) for member in self.members]  # type: ignore[operator]
        pairs = list(zip(self.members, features, strict=True))
        logits = torch.stack([member.read_out(x)[:, 0] for member, x in pairs])  # type: ignore[operator]
        logits = self.slope * logits + self.offset
        places = torch.stack([member.saliency(x) for member, x in pairs]).mean(0)  # type: ignore[operator]
        return torch.sigmoid(torch.stack([logits.mean(0), logits.amin(0), logits.amax(0)], dim=-1)), places
