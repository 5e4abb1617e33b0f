"""Tests dapps/evaluation/labels.py: a table gives the needed columns, or a refusal names what to add."""

from pathlib import Path

import pytest

from dapps.evaluation import labels


def table(folder: Path, data: bytes) -> Path:
    path = folder / "set" / "labels.csv"
    path.parent.mkdir()
    path.write_bytes(data)
    return path


def test_marks_blanks_and_uneven_rows_are_read(tmp_path: Path) -> None:
    path = table(tmp_path, b"\xef\xbb\xbffile,patient,note\n a.jpg , 7 ,caf\xe9\nb.jpg,8\nc.jpg,9,x,more,still more\n")
    first, second, third = labels.read(path, ("file", "patient"))
    assert (first["file"], first["patient"]) == ("a.jpg", "7")
    assert second == {"file": "b.jpg", "patient": "8", "note": ""}
    assert third["note"] == "x" and set(third) == {"file", "patient", "note"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "set/labels.csv lacks the columns file, patient"),
        (b"file\na.jpg\n", "set/labels.csv lacks the columns patient"),
        (b"file,patient\n", "set/labels.csv has a header and no row"),
        (b"file,patient\na.jpg," + b"x" * 200_000, "set/labels.csv is not a CSV table"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "set/labels.csv lacks the columns file, patient"),
    ],
    ids=["nothing", "a-column-short", "no-row", "one-endless-field", "a-picture"],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(labels.Unusable) as refused:
        labels.read(table(tmp_path, data), ("file", "patient"))
    assert str(refused.value) == says


@pytest.mark.parametrize("text", ["Jane Doe", "nan", "1e999", "0x10"])
def test_a_number_that_is_none_is_named_by_its_place_and_never_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(labels.Unusable) as refused:
        labels.number({"age": text}, "age", 3, tmp_path / "labels.csv")
    assert str(refused.value).endswith("labels.csv, row 3: age is not a number")
    assert (
        labels.number({"age": ""}, "age", 3, tmp_path) is None and labels.number({"age": "7"}, "age", 3, tmp_path) == 7
    )
