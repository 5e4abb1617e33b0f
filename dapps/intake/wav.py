"""Reads a WAV recording as mono float32 at 4000 Hz, or refuses it: at most 60 s, neither silent nor clipped.

Linear PCM of 8, 16, 24 or 32 bits, one or two channels, 1 to 48 kHz. The header is checked against the bounds before
samples are read, and against the bytes after it. Knows no model.
"""

from __future__ import annotations

import math
import wave
from typing import Any

import numpy as np

from dapps.api import Array, IntakeRefused
from dapps.intake.bounded_reader import BoundedReader

RATE_HZ = 4000
MIN_S, MAX_S = 1.0, 60.0
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 48_000
MAX_BYTES = 32 * 1024 * 1024
CLIPPED_SHARE = {1: 0.1, 2: 0.02, 3: 0.02, 4: 0.02}
"""Share of samples in flat tops, by bytes a sample: coarse steps flatten honest tops too."""
QUIET_RANGE = 0.05
SILENT_RMS = 1e-4

Sound = np.ndarray[Any, np.dtype[np.float32]]


def read_wav(data: bytes) -> Sound:
    """Samples [N] at RATE_HZ, scaled so that full range is -1..1, without a constant offset.

    Raises:
        IntakeRefused: `unreadable`, `too_large`, `wrong_format`, `empty`, `truncated`, `too_short`, `too_long`,
            `clipped` or `silent`.
    """
    if len(data) > MAX_BYTES:
        raise IntakeRefused("too_large", "the file is too large: send at most 60 seconds of sound")
    rate_hz, channels, width_bytes, raw = _open(data)
    samples = _samples(raw, width_bytes).reshape(-1, channels)
    _refuse_clipped(samples, width_bytes)
    mono = samples.mean(1)
    mono = mono - mono.mean()
    if float(np.sqrt(np.mean(mono**2))) < SILENT_RMS:
        raise IntakeRefused("silent", "the recording is silent: check the stethoscope's contact and record again")
    return np.ascontiguousarray(resample(mono, rate_hz, RATE_HZ), np.float32)


def resample(signal: Array, from_hz: int, to_hz: int) -> Array:
    """The signal at another rate, low-pass filtered below both Nyquist frequencies."""
    if from_hz == to_hz:
        return signal
    from scipy.signal import resample_poly  # takes most of a second to import, and most recordings come at RATE_HZ

    common = math.gcd(from_hz, to_hz)
    return np.asarray(resample_poly(signal, to_hz // common, from_hz // common, padtype="line"))


def _open(data: bytes) -> tuple[int, int, int, bytes]:
    try:
        with wave.open(BoundedReader(data)) as file:
            rate_hz, channels, width_bytes, frames = (
                file.getframerate(),
                file.getnchannels(),
                file.getsampwidth(),
                file.getnframes(),
            )
            _refuse_format(rate_hz, channels, width_bytes)
            _refuse_length(frames / rate_hz, frames)
            raw = file.readframes(frames)
    except IntakeRefused:
        raise
    except Exception:  # `wave` raises EOFError, struct.error and others, whose texts are not for a caller
        raise IntakeRefused("unreadable", "this is not a linear PCM WAV file that can be read") from None
    if len(raw) != frames * channels * width_bytes:
        raise IntakeRefused("truncated", "the WAV file ends before its header says it does")
    return rate_hz, channels, width_bytes, raw


def _refuse_format(rate_hz: int, channels: int, width_bytes: int) -> None:
    if channels not in (1, 2):
        raise IntakeRefused("wrong_format", "send one or two channels")
    if width_bytes not in (1, 2, 3, 4):
        raise IntakeRefused("wrong_format", "send 8, 16, 24 or 32 bit PCM")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise IntakeRefused("wrong_format", "send a sampling rate of 1 to 48 kHz")


def _refuse_length(seconds: float, frames: int) -> None:
    if frames == 0:
        raise IntakeRefused("empty", "the recording holds no samples")
    if seconds < MIN_S:
        raise IntakeRefused("too_short", "the recording is too short: at least 1 second is needed, better 10")
    if seconds > MAX_S:
        raise IntakeRefused("too_long", "the recording is too long: send at most 60 seconds")


def _samples(raw: bytes, width_bytes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    if width_bytes == 1:  # the only unsigned width of the format
        return (np.frombuffer(raw, "u1").astype(np.float64) - 128) / 128
    if width_bytes == 3:
        wide = np.zeros((len(raw) // 3, 4), "u1")
        wide[:, 1:] = np.frombuffer(raw, "u1").reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float64) / 2.0**31
    return np.frombuffer(raw, f"<i{width_bytes}").astype(np.float64) / 2.0 ** (8 * width_bytes - 1)


def _refuse_clipped(samples: np.ndarray[Any, np.dtype[np.float64]], width_bytes: int) -> None:
    """Refuses flat tops: neighbouring samples at the recording's own extremes, even if attenuated later."""
    top, bottom = samples.max(), samples.min()
    if top - bottom < QUIET_RANGE:  # so few steps that equal neighbours prove nothing
        return
    flat = sum(float(np.mean(at[1:] & at[:-1])) for at in (samples == top, samples == bottom))
    if flat > CLIPPED_SHARE[width_bytes]:
        raise IntakeRefused("clipped", "the recording is clipped: lower the gain and record again")
