"""`leben guideline` as a user runs it, with files and with mistakes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LEBEN
from tests.dapps.knowledge.small import changed

CORE = {
    "hours_since_last_known_well": 2,
    "disabling_deficit": True,
    "nihss": 12,
    "haemorrhage": False,
    "platelets_10e3_per_ul": 200,
    "inr": 1.0,
    "aptt_s": 30,
    "pt_s": 12,
    "glucose_mg_dl": 110,
}
OXIMETRY = {"pre_ductal_spo2_percent": 97, "post_ductal_spo2_percent": 94, "screen_number": 1, "age_h": 26}


def guideline(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LEBEN, "guideline", *words], capture_output=True, text=True, timeout=60)


def explained(name: str, record: Any, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    file = folder / "record.json"
    file.write_text(record if isinstance(record, str) else json.dumps(record))
    return guideline("explain", name, "--record", str(file), *more)


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("stroke-ivt-2026", CORE, "offer_ivt"),
        ("stroke-ivt-2026", CORE | {"haemorrhage": None}, "specialist_review"),
        ("stroke-ivt-2026", CORE | {"haemorrhage": True}, "withhold_ivt"),
        ("cchd-aap-2025", OXIMETRY, "repeat"),
        ("cchd-aap-2011", OXIMETRY, "pass"),
        ("cchd-aap-2025", {}, None),
    ],
)
def test_a_record_is_explained_as_json(name: str, record: dict[str, Any], expected: str | None, tmp_path: Path) -> None:
    done = explained(name, record, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["recommended"] == expected
    for option in output["options"]:
        assert {"name", "support", "arguments"} <= option.keys()
        for argument in option["arguments"]:
            assert argument["truth"] in ("true", "false", "unknown") and argument["cite"]["from"]
    assert output["unknown"] == [field for field in output["unknown"] if record.get(field) is None]
    assert output["guideline"]["reviewed_by"] is None and "Not reviewed by a clinician." in output["notices"]


def test_the_other_renderings(tmp_path: Path) -> None:
    shown = explained("stroke-ivt-2026", CORE, tmp_path, "--what-if", "platelets_10e3_per_ul=50")
    assert "offer_ivt" in shown.stdout and "provisional" in shown.stdout
    assert "what if platelets_10e3_per_ul=50: withhold_ivt would be recommended" in shown.stdout
    table = explained("stroke-ivt-2026", CORE, tmp_path, "--format", "markdown").stdout
    assert "| offer_ivt | `+` |" in table and "0.25 mg/kg" in table
    page = explained("stroke-ivt-2026", CORE, tmp_path, "--format", "patient").stdout
    assert "not medical advice" in page and "mg/kg" not in page
    tried = explained("cchd-aap-2025", OXIMETRY, tmp_path, "--json", "--what-if", "post_ductal_spo2_percent=null")
    assert json.loads(tried.stdout)["what_if"] == {
        "if": {"post_ductal_spo2_percent": None}, "recommended": None, "provisional": False, "changes": True,
    }  # fmt: skip


MISTAKES = [
    pytest.param(
        "stroke-ivt-2026", {"platelets": 100}, "platelets: stroke-ivt-2026 has no such field", id="unknown field"
    ),
    pytest.param("stroke-ivt-2026", {"haemorrhage": "no"}, "haemorrhage: it is true, false or null", id="text"),
    pytest.param("stroke-ivt-2026", {"haemorrhage": 0}, "haemorrhage: it is true, false or null", id="0 for false"),
    pytest.param("stroke-ivt-2026", {"nihss": 43}, "nihss: impossible", id="impossible"),
    pytest.param("stroke-ivt-2026", {"nihss": True}, "nihss: it is a number", id="true for a number"),
    pytest.param("stroke-ivt-2026", '{"inr": NaN}', "inr: it is a number", id="NaN"),
    pytest.param("stroke-ivt-2026", {"glucose_mg_dl": 5.5}, "glucose_mg_dl: impossible", id="mmol/L"),
    pytest.param(
        "stroke-ivt-2026",
        {"glucose_mg_dl": {"value": 90, "unit": "mmol/L"}},
        "glucose_mg_dl: the unit is mg/dL",
        id="unit",
    ),
    pytest.param(
        "cchd-aap-2025", {"pre_ductal_spo2_percent": 0.97}, "pre_ductal_spo2_percent: impossible", id="fraction"
    ),
    pytest.param(
        "cchd-aap-2025", {"pre_ductal_spo2_percent": 101}, "pre_ductal_spo2_percent: impossible", id="above 100"
    ),
    pytest.param("cchd-aap-2025", {"screen_number": 0}, "screen_number: impossible", id="screen 0"),
    pytest.param("cchd-aap-2025", {"screen_number": 1.5}, "screen_number: it is a whole number", id="screen 1.5"),
    pytest.param("cchd-aap-2025", "[]", "a record is one JSON object", id="list"),
    pytest.param("cchd-aap-2025", "{", "the record is not JSON", id="not JSON"),
    pytest.param("cchd-aap-2026", OXIMETRY, "no guideline named 'cchd-aap-2026'", id="no such guideline"),
]


@pytest.mark.parametrize(("name", "record", "text"), MISTAKES)
def test_a_mistake_is_one_plain_line_with_the_fields_name(name: str, record: Any, text: str, tmp_path: Path) -> None:
    done = explained(name, record, tmp_path, "--json")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"leben: {text}") and done.stderr.count("\n") == 1, done.stderr


def test_files_that_are_not_there_or_not_the_pinned_ones(tmp_path: Path) -> None:
    for words in (
        ("explain", "cchd-aap-2025", "--record", "nowhere.json"),
        ("lint", "nowhere.yaml"),
        ("lint", str(tmp_path)),
    ):
        done = guideline(*words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    wrong = explained("cchd-aap-2025", OXIMETRY, tmp_path, "--digest", "00" * 32)
    assert wrong.returncode == 1 and "not the file that was pinned" in wrong.stderr


def test_a_file_of_ones_own_is_linted_tabled_compared_and_explained(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    mine.write_bytes(changed())
    other.write_bytes(changed(("score >= 40", "score >= 60")))
    sound = guideline("lint", str(mine))
    assert sound.returncode == 0 and "small 1.0.0 is sound; digest " in sound.stdout
    rows = json.loads(guideline("table", str(mine), "--over", "allergy,scan", "--json").stdout)
    assert len(rows) == 9 and {"record": {"allergy": False, "scan": False}, "recommended": "treat"} in rows
    output = json.loads(guideline("diff", str(mine), str(other), "--json").stdout)
    assert [part["name"] for part in output["parts"]] == ["high"] and output["old"]["digest"] != output["new"]["digest"]
    assert "score >= 60" in guideline("diff", str(mine), str(other)).stdout
    assert json.loads(explained(str(mine), {"score": 30}, tmp_path, "--json").stdout)["recommended"] == "wait"


def test_flaws_come_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "flawed.yaml"
    file.write_bytes(changed(("unit: mg/dL, ", ""), ("if: allergy", "if: 9 ** 9 ** 9")))
    done = guideline("lint", str(file))
    assert done.returncode == 1
    assert f"{file}:10: error: score: the unit is missing" in done.stdout
    assert "BinOp is not in the language of conditions" in done.stdout
    flaws = json.loads(guideline("lint", str(file), "--json").stdout)
    assert {flaw["line"] for flaw in flaws} >= {10} and all(flaw["severity"] == "error" for flaw in flaws)


def test_guidelines_and_fields_are_listed() -> None:
    shown = guideline("list").stdout
    for name in ("stroke-ivt-2026", "stroke-ivt-2018", "cchd-aap-2025", "cchd-aap-2011", "nobody", "superseded"):
        assert name in shown
    fields = json.loads(guideline("fields", "stroke-ivt-2026", "--json").stdout)
    assert fields["platelets_10e3_per_ul"]["unit"] == "10*3/uL" and fields["platelets_10e3_per_ul"]["range"] == [
        1,
        2000,
    ]
    assert fields["infective_endocarditis"]["group"] == "absolute" and set(CORE) <= set(fields)
    assert "infective_endocarditis" in guideline("fields", "stroke-ivt-2026").stdout
    table = guideline("table", "cchd-aap-2025").stdout
    assert "pre_ductal_spo2_percent" in table and table.count("refer") > 20
