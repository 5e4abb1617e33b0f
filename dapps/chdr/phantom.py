"""Synthesises a phonocardiogram without any person's data: heart sounds, an optional systolic murmur, noise.

For examples, tests and demos only: no model is trained on it, and its murmur proves nothing about real ones.
"""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np

RATE_HZ = 4000

Sound = np.ndarray[Any, np.dtype[np.float32]]


def phonocardiogram(
    murmur: bool, seconds: float = 8.0, beats_per_minute: float = 80.0, noise: float = 0.01, seed: int = 0
) -> Sound:
    """Samples [seconds * 4000] within -1..1.

    Args:
        murmur: adds a systolic murmur, a band of 100 to 350 Hz noise between the two sounds.
        seconds: length of the recording.
        beats_per_minute: mean heart rate; each beat varies by about 3 %.
        noise: amplitude of the background beside a first heart sound of about 0.5.
        seed: same seed, same samples.
    """
    random = np.random.default_rng(seed)
    count = round(seconds * RATE_HZ)
    sound = noise * _band(random, count, 20.0, 600.0)
    rough = _band(random, count, 100.0, 350.0)
    at_s = 0.1
    while at_s < seconds:
        beat_s = 60.0 / beats_per_minute * (1 + 0.03 * random.standard_normal())
        systole_s = 0.2 + 0.12 * beat_s
        sound += _thump(count, at_s, 45.0, 0.022, 0.5) + _thump(count, at_s + systole_s, 60.0, 0.015, 0.35)
        if murmur:
            sound += 0.12 * rough * _hump(count, at_s + 0.05, systole_s - 0.07)
        at_s += beat_s
    return np.asarray(0.9 * sound / max(1.0, float(np.abs(sound).max())), np.float32)


def wav(sound: Sound) -> bytes:
    """The samples as a 16-bit mono WAV file at 4 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE_HZ)
        out.writeframes(np.rint(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def _thump(count: int, at_s: float, tone_hz: float, width_s: float, height: float) -> np.ndarray[Any, Any]:
    time_s = np.arange(count) / RATE_HZ - at_s
    return np.asarray(height * np.exp(-((time_s / width_s) ** 2)) * np.cos(2 * np.pi * tone_hz * time_s))


def _hump(count: int, start_s: float, length_s: float) -> np.ndarray[Any, Any]:
    share = (np.arange(count) / RATE_HZ - start_s) / length_s
    return np.where((share > 0) & (share < 1), np.sin(np.pi * np.clip(share, 0, 1)), 0.0)


def _band(random: np.random.Generator, count: int, low_hz: float, high_hz: float) -> np.ndarray[Any, Any]:
    spectrum = np.fft.rfft(random.standard_normal(count))
    tones_hz = np.fft.rfftfreq(count, 1 / RATE_HZ)
    spectrum[(tones_hz < low_hz) | (tones_hz > high_hz)] = 0
    signal = np.fft.irfft(spectrum, count)
    return np.asarray(signal / signal.std())
