"""Mirror of dapps/chdr/train.py and dapps/strokedr/train.py: from a folder of made-up patients to weights and a card.

The data are drawn here, so nothing is said about quality: only that the scripts run, split by patient, repeat
themselves to the bit, and write a card of their own run that names no path of the machine.
"""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dapps import card
from dapps.chdr import phantom
from dapps.chdr import train as chdr
from dapps.chdr.data import read as read_sound
from dapps.strokedr import train as strokedr
from dapps.strokedr.framing import window
from dapps.strokedr.net import TARGETS

PATIENTS = 24


def sound_folder(folder: Path) -> None:
    (folder / "pascal_b" / "wav").mkdir(parents=True)
    rows = []
    for patient in range(PATIENTS):
        sound = phantom.phonocardiogram(murmur=patient % 2 == 0, seconds=4.0, seed=patient)
        label = "extrastole" if patient == 23 else ("murmur", "normal")[patient % 2]
        (folder / "pascal_b" / "wav" / f"{patient}.wav").write_bytes(phantom.wav(sound))
        rows.append({"file": f"{patient}.wav", "label": label, "noisy": patient % 3 == 0, "patient": patient})
    rows.append({**rows[0], "file": "short.wav"})
    (folder / "pascal_b" / "wav" / "short.wav").write_bytes(phantom.wav(np.zeros(400, np.float32)))
    write_rows(folder / "pascal_b" / "labels.csv", [{**row, "noisy": int(row["noisy"])} for row in rows])


def head_folder(folder: Path) -> None:
    (folder / "ct_ich" / "img").mkdir(parents=True)
    rows = []
    for patient in range(PATIENTS):
        for number in range(2):
            random = np.random.default_rng(patient * 10 + number)
            row, column = np.indices((325, 325)) - 162
            reach = np.sqrt((row / 120) ** 2 + (column / 95) ** 2)
            hu = np.where(reach < 1, 900.0, -1000.0)
            hu[reach < 0.9] = 34
            bleeds = patient % 2 == 0 and number == 0
            if bleeds:
                hu[(row - 20) ** 2 + (column - 30) ** 2 < 900] = 68
            name = f"img/{patient:03d}_{number:03d}.png"
            picture = Image.fromarray(window(hu + random.normal(0, 4, hu.shape))).resize((650, 650))
            picture.save(folder / "ct_ich" / name)
            kinds = dict.fromkeys(TARGETS[1:], "") | {"Epidural": "1.0" if bleeds else "0.0"}
            rows.append({"file": name, "patient": patient, "ich": int(bleeds), **kinds})
    write_rows(folder / "ct_ich" / "labels.csv", rows)


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def check_written(out: Path, data: Path) -> dict[str, object]:
    weights = (out / "weights.safetensors").read_bytes()
    told = json.loads((out / "card.json").read_text("utf-8"))
    text = (out / "CARD.md").read_text("utf-8")
    assert told["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert card.markdown(told) == text and str(data) not in text
    return dict(told)


def test_the_murmur_script_runs_on_phantoms_and_repeats_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound_folder(tmp_path)
    for out in ("first", "second"):
        chdr.main(["--data", str(tmp_path), "--out", str(tmp_path / out), "--steps", "20", "--threads", "1"])
    first, second = (check_written(tmp_path / out, tmp_path) for out in ("first", "second"))
    assert first["weights"] == second["weights"]
    assert read_sound(tmp_path).refused == {"murmur: too_short": 1}
    assert "# Model card: CHDr murmur" in capsys.readouterr().out


def test_the_haemorrhage_script_runs_on_drawn_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head_folder(tmp_path)
    monkeypatch.setattr(strokedr, "ITEMS_PER_EPOCH", 320)
    strokedr.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--epochs", "1", "--threads", "1"])
    told = check_written(tmp_path / "out", tmp_path)
    assert "test, by slice" in told and "development, by patient" in told
