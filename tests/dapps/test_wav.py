"""Tests dapps/intake/wav.py: any file gives a sound in range or a refusal that quotes nothing."""

import io
import struct
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dapps.api.types import IntakeRefused
from dapps.chdr import phantom
from dapps.intake.wav import MAX_S, RATE_HZ, read_wav, resample
from tests.examples import examples

GOOD = phantom.wav(phantom.phonocardiogram(murmur=False, seconds=2.0))


def make(
    sound: "np.ndarray[Any, Any]", rate_hz: int = 4000, width_bytes: int = 2, channels: int = 1, top: float = 1.0
) -> bytes:
    """A PCM WAV file of samples within -1..1; with two channels the second is silent."""
    steps = np.rint(np.clip(sound, -1, 1) * top * (2 ** (8 * width_bytes - 1) - 1)).astype(np.int64)
    steps = np.stack([steps, *[np.zeros_like(steps)] * (channels - 1)], axis=1).ravel()
    if width_bytes == 1:
        raw = (steps + 128).astype("u1").tobytes()
    else:
        raw = steps.astype("<i8").view("u1").reshape(-1, 8)[:, :width_bytes].tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width_bytes)
        out.setframerate(rate_hz)
        out.writeframes(raw)
    return file.getvalue()


def tone(seconds: float = 2.0, rate_hz: int = 4000, tone_hz: float = 100.0) -> "np.ndarray[Any, Any]":
    """A sine of amplitude 0.5 that fades in and out."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return 0.5 * np.sin(2 * np.pi * tone_hz * time_s) * np.sin(np.pi * time_s / seconds)


def header(channels: int = 1, rate_hz: int = 4000, bits: int = 16, kind: int = 1, size: int = 8000) -> bytes:
    """A WAV header written by hand, for values that the standard library will not write."""
    align = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, rate_hz, min(rate_hz * align, 2**32 - 1), align, bits)
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + size, 2**32 - 1))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", size)
    )


@pytest.mark.parametrize("rate_hz", [1000, 2000, 4000, 8000, 11_025, 44_100, 48_000])
@pytest.mark.parametrize("width_bytes", [1, 2, 3, 4])
def test_every_rate_and_width_gives_the_same_sound(rate_hz: int, width_bytes: int) -> None:
    sound = read_wav(make(tone(rate_hz=rate_hz), rate_hz, width_bytes))
    assert sound.dtype == np.float32 and len(sound) == 2 * RATE_HZ
    assert np.abs(sound - tone()).max() < 0.012


def test_two_channels_are_averaged() -> None:
    assert np.abs(read_wav(make(tone(), channels=2)) - tone() / 2).max() < 0.001


def test_a_tone_above_the_new_rate_is_removed_not_folded() -> None:
    sound = read_wav(make(tone(rate_hz=16_000, tone_hz=3000) + tone(rate_hz=16_000), 16_000))
    assert np.abs(sound - tone())[200:-200].max() < 0.01


@given(st.integers(1000, 48_000), st.floats(1.0, 3.0))
@settings(max_examples=examples(40))
def test_resampling_keeps_the_duration(rate_hz: int, seconds: float) -> None:
    count = round(seconds * rate_hz)
    assert abs(len(resample(np.ones(count), rate_hz, RATE_HZ)) / RATE_HZ - count / rate_hz) < 2 / RATE_HZ


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "unreadable", id="no-bytes"),
        pytest.param(b"a murmur was heard", "unreadable", id="text"),
        pytest.param(GOOD[:20], "unreadable", id="cut-in-the-header"),
        pytest.param(GOOD[:-1000], "truncated", id="cut-in-the-samples"),
        pytest.param(make(np.zeros(0)), "empty", id="no-samples"),
        pytest.param(make(tone(0.5)), "too_short", id="half-a-second"),
        pytest.param(make(tone(61.0)), "too_long", id="61-seconds"),
        pytest.param(make(np.zeros(8000)), "silent", id="all-zero"),
        pytest.param(make(np.full(8000, 0.3)), "silent", id="constant-offset"),
        pytest.param(make(np.clip(tone() * 6, -1, 1)), "clipped", id="clipped"),
        pytest.param(make(np.clip(tone() * 6, -1, 1), top=0.4), "clipped", id="clipped-then-made-quieter"),
        pytest.param(make(tone(rate_hz=500), 500), "wrong_format", id="500-hz"),
        pytest.param(make(tone(rate_hz=96_000), 96_000), "wrong_format", id="96-khz"),
        pytest.param(make(tone(), channels=3), "wrong_format", id="three-channels"),
        pytest.param(header(kind=3, bits=32) + bytes(8000), "unreadable", id="float-samples"),
        pytest.param(header(rate_hz=0) + bytes(8000), "wrong_format", id="rate-zero"),
        pytest.param(header(rate_hz=2**32 - 1) + bytes(8000), "wrong_format", id="rate-huge"),
        pytest.param(header(channels=0) + bytes(8000), "unreadable", id="no-channels"),
        pytest.param(header(size=2**32 - 1) + bytes(8000), "too_long", id="claims-four-gigabytes"),
        pytest.param(header(bits=64) + bytes(8000), "wrong_format", id="64-bit"),
    ],
)
def test_a_bad_file_is_refused_by_its_cause(data: bytes, code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        read_wav(data)
    assert refused.value.code == code
    assert refused.value.__cause__ is None


def test_a_file_beyond_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(IntakeRefused, match="too large"):
        read_wav(bytes(33 * 1024 * 1024))


def test_millions_of_empty_chunks_are_refused_early() -> None:
    with pytest.raises(IntakeRefused) as refused:
        read_wav(b"RIFF\xff\xff\xff\x01WAVE" + b"LIST\x00\x00\x00\x00" * 3_000_000)
    assert refused.value.code == "too_large"


@given(st.binary(max_size=400))
@example(b"RIFF\x00\x00\x00\x00WAVE")
@settings(max_examples=examples(200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntakeRefused):
        read_wav(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 60), st.binary(min_size=1, max_size=4))
@settings(max_examples=examples(200))
def test_a_damaged_file_is_read_or_refused_but_never_fails_otherwise(length: int, place: int, junk: bytes) -> None:
    damaged = GOOD[:place] + junk + GOOD[place + len(junk) :]
    for data in (GOOD[:length], damaged):
        try:
            sound = read_wav(data)
        except IntakeRefused:
            continue
        assert sound.dtype == np.float32 and np.isfinite(sound).all()
        assert RATE_HZ * 0.9 <= len(sound) <= RATE_HZ * MAX_S + 1
