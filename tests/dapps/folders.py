"""Writes folders of invented patients in the layouts that the training scripts and `leben dapp evaluate` read."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from dapps.chdr import phantom
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


def trial_folder(folder: Path, hospitals: int = 30, patients: int = 20) -> None:
    """Age and consciousness decide the outcome, but for chance; a few fields are empty, a few outcomes unknown."""
    (folder / "ist").mkdir(parents=True)
    random = np.random.default_rng(5)
    rows: list[dict[str, object]] = []
    for number in range(hospitals * patients):
        age, state = int(random.integers(40, 95)), str(random.choice(["F", "D", "U"], p=[0.7, 0.2, 0.1]))
        risk = (age - 65) / 10 + {"F": 0, "D": 1, "U": 3}[state] + random.normal(0, 1)
        row: dict[str, object] = {"HOSPNUM": number % hospitals, "COUNTRY": "UK" if number % hospitals < 10 else "ITAL"}
        row |= {"AGE": age, "RDELAY": 12, "RSBP": 160, "SEX": "FM"[number % 2], "RCONSC": state, "STYPE": "PACS"}
        row |= {name: "N" for name in ("RSLEEP", "RCT", "RVISINF", "RHEP24", "RASP3")} | {"RATRIAL": ""}
        row |= {f"RDEF{index}": "YNC"[(number + index) % 3] for index in range(1, 9)}
        dead = risk > 3
        row |= {"OCCODE": 9 if number % 50 == 0 else 1 if dead else 2 if risk > 1 else 4, "ID14": int(dead)}
        rows.append(row)
    write_rows(folder / "ist" / "any name.csv", rows)
