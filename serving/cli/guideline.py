"""Explains, checks and compares guidelines: `leben guideline`."""

from __future__ import annotations

import json as json_library
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dapps.knowledge import (
    GuidelineError,
    RecordRefused,
    UnknownGuideline,
    fields,
    library,
    record,
    render,
    table,
    terminal,
)
from dapps.knowledge.changes import what_if
from dapps.knowledge.diff import differences
from dapps.knowledge.document import Datum
from dapps.knowledge.explain import explain
from dapps.knowledge.guideline import Guideline, load, plain
from dapps.knowledge.lint import lint
from serving.cli.console import err, fail, out

Which = Annotated[str, typer.Argument(metavar="NAME-or-FILE", help="A guideline's name, or the path of its YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LARGEST_RECORD = fields.MAX_BYTES + 1


class Format(StrEnum):
    """The form of an explanation."""

    TERMINAL = "terminal"
    JSON = "json"
    MARKDOWN = "markdown"
    PATIENT = "patient"


def guideline_list() -> None:
    """List the built-in and installed guidelines with version, review and digest."""
    shown = Table("name", "version", "status", "reviewed by", "digest", "title", box=SIMPLE)
    with refusals():
        for name in library.names():
            guideline = library.find(name)
            file = guideline.document
            shown.add_row(
                name, file.version, file.status, file.reviewed_by or "nobody", guideline.digest[:12], file.title
            )
    wide(shown)


def guideline_fields(name: Which, json: Json = False) -> None:
    """List the fields of a guideline's record: type, unit, range, tier, origin, concept code and meaning."""
    with refusals():
        guideline = open_guideline(name)
    if json:
        return show({field: as_json(datum) for field, datum in guideline.document.data.items()})
    shown = Table("field", "type", "possible", "tier", "from", "code", "meaning", box=SIMPLE)
    for field, datum in guideline.document.data.items():
        low, high = datum.range or ("", "")
        possible = f"{low} to {high} {datum.unit}" if datum.range else ", ".join(datum.options or ("true, false",))
        code = f"{datum.code.system} {datum.code.code}" if datum.code else ""
        shown.add_row(field, datum.type, escape(possible), datum.group or "", ", ".join(datum.origin), code, datum.text)
    wide(shown)


def guideline_explain(
    name: Which,
    record_file: Annotated[Path, typer.Option("--record", help="A JSON file {field: value}; null is unknown.")],
    json: Json = False,
    form: Annotated[Format, typer.Option("--format", help="The form of the explanation.")] = Format.TERMINAL,
    if_: Annotated[
        list[str] | None,
        typer.Option("--what-if", metavar="FIELD=VALUE", help="Also explain the record with this value."),
    ] = None,
    digest: Annotated[str | None, typer.Option(help="Refuse a guideline with another digest.")] = None,
) -> None:
    """Explain what a guideline recommends for a record, and why.

    `leben guideline fields NAME` lists the fields of a record. An absent or null field is unknown; unknown is never
    "no". stroke-ivt-2026 has one true-or-false field for each condition of its risk tiers, such as
    infective_endocarditis (absolute), doac_within_48_h (relative), remote_myocardial_infarction (benefit above risk).
    A recommendation is provisional while a condition that would exclude it is unknown.
    """
    with refusals():
        guideline = open_guideline(name, digest)
        with record_file.open("rb") as file:
            values = record.parse(file.read(LARGEST_RECORD), guideline)
        tree = explain(guideline, values)
        if if_:
            tree["what_if"] = what_if(guideline, values, record.read(assignments(if_), guideline, nulls=True))
    if json or form is Format.JSON:
        return show(tree)
    if form is Format.MARKDOWN:
        print(render.markdown(tree), end="")
    elif form is Format.PATIENT:
        print(render.patient(tree), end="")
    else:
        out.print(terminal.view(tree))
    if if_:
        tried = tree["what_if"]
        out.print(f"what if {', '.join(if_)}: {tried['recommended'] or 'nothing'} would be recommended", markup=False)


def guideline_lint(name: Which, json: Json = False) -> None:
    """Check a guideline file, and print every flaw with its line and cause.

    Exits with 1 if there is an error.
    """
    with refusals():
        raw = library.open_file(name)
        flaws = lint(raw)
    if json:
        show([{"line": flaw.line, "severity": flaw.severity, "cause": flaw.cause} for flaw in flaws])
    else:
        for flaw in flaws:
            print(f"{name}:{flaw.line}: {flaw.severity}: {flaw.cause}")
    if any(flaw.severity == "error" for flaw in flaws):
        raise SystemExit(1)
    if not json:
        guideline = load(raw)
        print(f"{guideline.id} {guideline.document.version} is sound; digest {guideline.digest}")
        if guideline.document.reviewed_by is None:
            err.print("no clinician has reviewed it")


def guideline_table(
    name: Which,
    over: Annotated[
        str, typer.Option(help="Fields to vary, separated by commas; by default those that must be known.")
    ] = "",
    record_file: Annotated[Path | None, typer.Option("--record", help="A JSON file with the other fields.")] = None,
    json: Json = False,
) -> None:
    """Print the truth table: the recommendation on each side of every threshold, and for unknown.

    Fields that are not varied have unremarkable values, or those of --record.
    """
    with refusals():
        guideline = open_guideline(name)
        others = record.parse(record_file.read_bytes()[:LARGEST_RECORD], guideline) if record_file else None
        fields = tuple(over.replace(" ", "").split(",")) if over else table.fields(guideline)
        rows = list(table.rows(guideline, fields, others))
    if json:
        return show(
            [
                {"record": {field: plain(value) for field, value in row.values.items()}, "recommended": row.recommended}
                for row in rows
            ]
        )
    shown = Table(*fields, "recommended", title=f"{guideline.id} {guideline.document.version}", box=SIMPLE)
    for row in rows:
        mark = " (provisional)" if row.provisional else ""
        shown.add_row(*(cell(value) for value in row.values.values()), f"{row.recommended or '-'}{mark}")
    wide(shown)


def guideline_diff(
    old: Which,
    new: Annotated[str, typer.Argument(metavar="NAME-or-FILE", help="The other guideline.")],
    json: Json = False,
) -> None:
    """Compare two guidelines: parts that differ, and records with different recommendations."""
    with refusals():
        comparison = differences(open_guideline(old), open_guideline(new))
    if json:
        return show(comparison)
    for side in ("old", "new"):
        print(f"{side}: {comparison[side]['name']} {comparison[side]['version']} digest {comparison[side]['digest']}")
    parts = Table("part", "name", "change", "old", "new", box=SIMPLE)
    for part in comparison["parts"]:
        parts.add_row(part["part"], part["name"], part["change"], *(summary(part[side]) for side in ("old", "new")))
    wide(parts)
    if not comparison["examples"]:
        return print("they agree on every record tried")
    names = list(comparison["examples"][0]["record"])
    shown = Table(
        *names, "old", "new", title=f"they disagree on {comparison['disagreements']} records, such as", box=SIMPLE
    )
    for case in comparison["examples"]:
        shown.add_row(*(cell(value) for value in case["record"].values()), case["old"] or "-", case["new"] or "-")
    wide(shown)


def open_guideline(name: str, digest: str | None = None) -> Guideline:
    """Opens a guideline by name or file."""
    if name in library.names():
        return library.find(name, digest)
    guideline = load(library.open_file(name))
    if digest is not None and guideline.digest != digest.lower().removeprefix("0x"):
        raise UnknownGuideline(f"{name} is not the file that was pinned: its digest is {guideline.digest}")
    return guideline


def assignments(pairs: list[str]) -> dict[str, Any]:
    """Reads `FIELD=VALUE` pairs as a record; a value is JSON or a bare word."""
    values: dict[str, Any] = {}
    for pair in pairs:
        field, equals, text = pair.partition("=")
        if not equals:
            raise RecordRefused("--what-if takes FIELD=VALUE", field)
        try:
            values[field.strip()] = json_library.loads(text, parse_float=Decimal, parse_int=Decimal)
        except ValueError:
            values[field.strip()] = text.strip()
    return values


def as_json(datum: Datum) -> dict[str, Any]:
    """The declaration of a field, as JSON."""
    low_high = [plain(bound) for bound in datum.range] if datum.range else None
    example = plain(datum.example)
    return datum.model_dump(exclude={"step"}) | {"range": low_high, "example": example}


@contextmanager
def refusals() -> Iterator[None]:
    """Prints a refusal as one plain line, and exits."""
    try:
        yield
    except (GuidelineError, RecordRefused, UnknownGuideline) as error:
        fail(str(error))


def wide(shown: Table) -> None:
    """Prints a table; where the output is no terminal, wide enough that no name is cut."""
    (out if out.is_terminal else Console(width=240)).print(shown)


def show(value: Any) -> None:
    """Prints JSON."""
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def cell(value: object) -> str:
    """A value in a table."""
    return "unknown" if value is None else str(value).lower()


def summary(part: dict[str, Any] | None) -> str:
    """A part of a guideline in a table."""
    plainly = {
        key: ", ".join(f"{name} {sign}" for name, sign in value.items()) if isinstance(value, dict) else value
        for key, value in (part or {}).items()
    }
    return escape("; ".join(f"{key} {value}" for key, value in plainly.items() if value is not None))
