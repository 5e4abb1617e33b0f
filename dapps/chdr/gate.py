"""Refuses recordings that no heart can have made: a cheap plausibility check, not a diagnosis.

The network answers any sound with a number. Heart sounds are low, come in beats and have no voice's pitch. All but a
handful of the training recordings lie inside the bounds (the card counts them). Pure numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dapps.api import IntakeRefused

RATE_HZ = 4000
MIN_HZ, HEART_HZ, HIGH_HZ = 25.0, 400.0, 400.0
MAX_HIGH_SHARE = 0.55
MIN_BEAT = 0.35
VOICE_PITCH = 0.75
"""Murmurs of the training set stay below 0.62; a word said once, or said evenly, has a rhythm but a voice's pitch."""
STEP_SAMPLES, SMOOTH_STEPS = 40, 11
FRAME_SAMPLES = 320
PITCH_HZ = (80.0, 300.0)

Array = np.ndarray[Any, np.dtype[Any]]


def refuse_no_heart(sound: Array) -> None:
    """Refuses samples [N] at 4 kHz that no heart can have made.

    Raises:
        IntakeRefused: `low_quality`; the message says what is heard instead.
    """
    if high_share(sound) > MAX_HIGH_SHARE:
        raise IntakeRefused("low_quality", "most of this sound is too high for a heart: speech or noise? Record again")
    loudness = envelope(sound)
    if float(loudness.std() / max(loudness.mean(), 1e-12)) < MIN_BEAT:
        raise IntakeRefused("low_quality", "no beats can be heard over the noise: check the contact and record again")
    if pitch(sound) > VOICE_PITCH:
        raise IntakeRefused("low_quality", "this sounds like a voice: record in silence")


def high_share(sound: Array) -> float:
    """Share of the power above 20 Hz that lies above 400 Hz."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    tone_hz = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    return float(power[tone_hz >= HIGH_HZ].sum() / max(power[tone_hz >= 20].sum(), 1e-12))


def envelope(sound: Array) -> Array:
    """Loudness of the heart's band, 100 values a second, smoothed over about 60 ms."""
    inside = _band(sound, MIN_HZ, HEART_HZ)
    steps = len(inside) // STEP_SAMPLES
    loud = np.sqrt((inside[: steps * STEP_SAMPLES].reshape(steps, STEP_SAMPLES) ** 2).mean(1))
    taper = np.hanning(SMOOTH_STEPS)
    return np.convolve(loud, taper / taper.sum(), "valid")


def pitch(sound: Array) -> float:
    """The share of the sound, weighted by power, that has a pitch of vocal cords: about 1 in sung vowels."""
    inside = _band(sound, 60.0, 1000.0)
    taper = np.hanning(FRAME_SAMPLES)
    frames = np.lib.stride_tricks.sliding_window_view(inside, FRAME_SAMPLES)[:: FRAME_SAMPLES // 2] * taper
    power = (frames**2).sum(1)
    alike, own = (_autocorrelation(part) for part in (frames, taper[None]))
    first, last = (round(RATE_HZ / hz) for hz in reversed(PITCH_HZ))
    peak = (alike / np.maximum(alike[:, :1], 1e-12) / (own / own[:, :1]))[:, first:last].max(1)
    return float((peak * power).sum() / max(power.sum(), 1e-12))


def _autocorrelation(frames: Array) -> Array:
    spectrum = np.fft.rfft(frames, 2 * FRAME_SAMPLES, axis=1)
    return np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, : RATE_HZ // 80 + 1]


def _band(sound: Array, low_hz: float, high_hz: float) -> Array:
    spectrum = np.fft.rfft(sound)
    tone_hz = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    spectrum[(tone_hz < low_hz) | (tone_hz > high_hz)] = 0
    return np.fft.irfft(spectrum, len(sound))
