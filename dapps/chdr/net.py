"""Defines the murmur network: a log-band spectrogram and small convolutional members, averaged and calibrated.

Input is a waveform window [n,10000] at 4 kHz, so the front end cannot differ between training and service. Each window
is normalised for loudness and length. Every row depends on itself alone. `dapps/chdr/train.py` trains it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

RATE_HZ = 4000
WINDOW_SAMPLES = 10_000
FFT_SAMPLES = 256
HOP_SAMPLES = 80
BANDS = 32
MIN_HZ, MAX_HZ = 25.0, 900.0
KNEE_HZ = 120.0
"""Bands are about linear below the knee and logarithmic above it."""


class LogBands(nn.Module):
    """Waveform [n,T] -> log energy [n,BANDS,frames] in triangular bands, zero mean and unit spread a row."""

    taper: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taper", torch.hann_window(FFT_SAMPLES), persistent=False)
        self.register_buffer("bank", _triangles(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """[n,BANDS,frames] float32."""
        wave = wave.float()
        wave = wave - wave.mean(1, keepdim=True)
        wave = wave / wave.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        frames = wave.unfold(1, FFT_SAMPLES, HOP_SAMPLES) * self.taper
        energy = torch.fft.rfft(frames).abs().square() @ self.bank
        bands = torch.log(energy.transpose(1, 2) + 1e-3)
        spread = bands.std((1, 2), keepdim=True).clamp_min(1e-3)
        return (bands - bands.mean((1, 2), keepdim=True)) / spread


class Member(nn.Module):
    """One network: waveform [n,T] -> logit [n]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.bands = LogBands()
        self.stem = nn.Conv2d(1, width // 2, 5, stride=(2, 2), padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(width // 2)
        self.middle = nn.Conv2d(width // 2, width, 3, stride=(2, 2), padding=1, bias=False)
        self.middle_norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 2 * width, 3, stride=(2, 1), padding=1, bias=False)
        self.last_norm = nn.BatchNorm2d(2 * width)
        self.dropout = nn.Dropout(0.4)
        self.head = nn.Linear(4 * width, 1)

    def forward(self, wave: Tensor) -> Tensor:
        """Logits [n]."""
        return self.from_bands(self.bands(wave))

    def from_bands(self, bands: Tensor) -> Tensor:
        """Logits [n] from log bands [n,BANDS,frames]: training augments these bands."""
        x = functional.relu(self.stem_norm(self.stem(bands[:, None])))
        x = functional.relu(self.middle_norm(self.middle(x)))
        x = functional.relu(self.last_norm(self.last(x))).mean(2)
        pooled = torch.cat([x.mean(2), x.std(2)], dim=1)
        answer: Tensor = self.head(self.dropout(pooled))[:, 0]
        return answer


class MurmurNet(nn.Module):
    """All members on one spectrogram, each through the calibration that was fitted out of fold."""

    slope: Tensor
    offset: Tensor

    def __init__(self, members: int = 15) -> None:
        super().__init__()
        self.bands = LogBands()
        self.members = nn.ModuleList(Member() for _ in range(members))
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def logits(self, wave: Tensor) -> Tensor:
        """Calibrated logits of every member [members,n]."""
        bands = self.bands(wave)
        raw = torch.stack([member.from_bands(bands) for member in self.members])  # type: ignore[operator]
        return self.slope * raw + self.offset

    def forward(self, wave: Tensor) -> Tensor:
        """Probability that a murmur is heard in the window, lowest and highest of any member [n,3]."""
        logits = self.logits(wave)
        return torch.sigmoid(torch.stack([logits.mean(0), logits.amin(0), logits.amax(0)], dim=-1))


def _triangles() -> Tensor:
    low, high = (math.log1p(hz / KNEE_HZ) for hz in (MIN_HZ, MAX_HZ))
    edges = KNEE_HZ * torch.expm1(torch.linspace(low, high, BANDS + 2))
    tone_hz = torch.arange(FFT_SAMPLES // 2 + 1) * (RATE_HZ / FFT_SAMPLES)
    width_hz = torch.full_like(edges[:-2], RATE_HZ / FFT_SAMPLES)
    rising = (tone_hz[:, None] - edges[:-2]) / torch.maximum(edges[1:-1] - edges[:-2], width_hz)
    falling = (edges[2:] - tone_hz[:, None]) / torch.maximum(edges[2:] - edges[1:-1], width_hz)
    bank = torch.minimum(rising, falling).clamp(0.0, 1.0)
    return bank / bank.sum(0).clamp_min(math.ulp(1.0))
