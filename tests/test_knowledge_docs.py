"""Tests the pages about guidelines: their example runs, and a test exists for every hazard's control."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import LEBEN

ROOT = Path(__file__).parent.parent
WRITE, SAFETY = ROOT / "docs/write-a-guideline.md", ROOT / "docs/clinical-safety.md"


def block(marker: str) -> str:
    match = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", WRITE.read_text(), re.S)
    assert match, marker
    return match[1]


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(LEBEN).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_the_example_guideline_is_sound_and_says_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "fever-demo.yaml").write_text(block("file: fever-demo.yaml"))
    outputs = {line: run(["sh", "-c", line], tmp_path) for line in block("run").splitlines()}
    assert "fever-demo 1.0.0 is sound" in outputs["leben guideline lint fever-demo.yaml"]
    explained = json.loads(outputs["leben guideline explain fever-demo.yaml --record record.json --json"])
    assert explained["recommended"] == "call"
    tried = outputs["leben guideline explain fever-demo.yaml --record record.json --what-if stiff_neck=true"]
    assert "what if stiff_neck=true: hospital would be recommended" in tried
    assert "unknown" in outputs["leben guideline table fever-demo.yaml"]
    assert "they disagree on" in outputs["leben guideline diff cchd-aap-2011 cchd-aap-2025"]


def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    (tmp_path / "fever-demo.yaml").write_text(block("file: fever-demo.yaml"))
    (tmp_path / "program.py").write_text(block("program"))
    assert run([sys.executable, "program.py"], tmp_path) == "hospital\nDr. Ada Lovelace hospital True in_progress\n"


def test_every_hazard_is_controlled_by_tests_that_exist() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^(?:async )?def (test_\w+)\(", sources, re.M))
    rows = [line for line in SAFETY.read_text().splitlines() if re.match(r"\| .* \| [123] \| ", line)]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert not set(named) - defined, set(named) - defined


def test_the_page_names_every_word_of_the_format() -> None:
    text = WRITE.read_text()
    for word in ("blocks", "open", "ignored", "secondary", "recalled", "inferred", "true_if", "false_if", "abort_if"):
        assert f"`{word}`" in text, word
