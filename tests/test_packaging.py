"""The wheel holds what it must and nothing else, and its door opens without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_has_three_packages_with_their_scripts_weights_and_cards(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("serving", "channels", "dapps"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"serving", "channels", "dapps"}
    for name in (
        "channels/redis_store/scripts/hold.lua",
        "channels/redis_store/scripts/_head.lua",
        "channels/sql/migrations/env.py",
        "channels/sql/migrations/versions/v0001_as_released.py",
        "channels/evm/contracts/Split.json",
        "channels/evm/contracts/Split.vy",
        "dapps/chdr/weights.safetensors",
        "dapps/strokedr/weights.safetensors",
        "dapps/strokedr/prognosis/weights.safetensors",
        "dapps/chdr/CARD.md",
        "dapps/chdr/CARD.yaml",
        "dapps/py.typed",
        "serving/control/pages/home.html",
        "serving/control/pages/style.css",
        "serving/control/pages/icon.svg",
        "dapps/knowledge/guidelines/stroke-ivt-2026.yaml",
    ):
        assert name in names


def test_paying_and_the_door_need_no_torch_and_no_ray() -> None:
    program = "import channels.payer, serving.replica.http, sys; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
