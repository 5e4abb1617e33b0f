"""`leben guideline`: what a guideline asks for, what it recommends on a record and why, whether its file is sound."""

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

from dapps.knowledge import GuidelineError, RecordRefused, UnknownGuideline, library, record, render, table, terminal
from dapps.knowledge.diff import differences
from dapps.knowledge.document import Datum
from dapps.knowledge.explain import explain, what_if
from dapps.knowledge.guideline import Guideline, load, plain
from dapps.knowledge.lint import lint
from serving.cli.console import err, fail, out

guideline_app = typer.Typer(no_args_is_help=True, help="Guidelines: explained on a record, checked, compared.")

Which = Annotated[str, typer.Argument(metavar="NAME-or-FILE", help="A guideline's name, or the path of its YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
LARGEST_RECORD = record.MAX_BYTES + 1


class Format(StrEnum):
    """How an explanation is shown."""

    TERMINAL = "terminal"
    JSON = "json"
    MARKDOWN = "markdown"
    PATIENT = "patient"


@guideline_app.command("list")
def guideline_list() -> None:
    """List the guidelines that are built in or installed, with version, review and digest."""
    shown = Table("name", "version", "status", "reviewed by", "digest", "title", box=SIMPLE)
    with told():
        for name in library.names():
            found = library.find(name)
            file = found.document
            shown.add_row(name, file.version, file.status, file.reviewed_by or "nobody", found.digest[:12], file.title)
    wide(shown)


@guideline_app.command("fields")
def guideline_fields(name: Which, json: Json = False) -> None:
    """List the fields of a guideline's record: type, unit, range, tier, origin, concept code and meaning."""
    with told():
        found = opened(name)
    if json:
        return show({field: as_json(datum) for field, datum in found.document.data.items()})
    shown = Table("field", "type", "possible", "tier", "from", "code", "meaning", box=SIMPLE)
    for field, datum in found.document.data.items():
        low, high = datum.range or ("", "")
        possible = f"{low} to {high} {datum.unit}" if datum.range else ", ".join(datum.options or ("true, false",))
        code = f"{datum.code.system} {datum.code.code}" if datum.code else ""
        shown.add_row(field, datum.type, escape(possible), datum.group or "", ", ".join(datum.origin), code, datum.text)
    wide(shown)


@guideline_app.command("explain")
def guideline_explain(
    name: Which,
    record_file: Annotated[Path, typer.Option("--record", help="A JSON file: {field: value}; null is unknown.")],
    json: Json = False,
    form: Annotated[Format, typer.Option("--format", help="How to show it.")] = Format.TERMINAL,
    if_: Annotated[list[str] | None, typer.Option("--what-if", metavar="FIELD=VALUE", help="Also try this.")] = None,
    digest: Annotated[str | None, typer.Option(help="The digest that the guideline must have.")] = None,
) -> None:
    """Say what a guideline recommends on a record, and why.

    The record's fields are listed by `leben guideline fields NAME`. A field that is absent or null is unknown, and
    unknown is never "no". stroke-ivt-2026 has one true-or-false field for each condition of its risk tiers, such as
    infective_endocarditis (absolute), doac_within_48_h (relative), remote_myocardial_infarction (benefit above risk).
    A recommendation is provisional while such a condition, which would speak against it, has not been asked for.
    """
    with told():
        found = opened(name, digest)
        with record_file.open("rb") as file:
            known = record.parse(file.read(LARGEST_RECORD), found)
        tree = explain(found, known)
        if if_:
            tree["what_if"] = what_if(found, known, record.read(assignments(if_), found, nulls=True))
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


@guideline_app.command("lint")
def guideline_lint(name: Which, json: Json = False) -> None:
    """Check a guideline file: every flaw with its line and cause; exits with 1 if there is an error."""
    with told():
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
        found = load(raw)
        print(f"{found.id} {found.document.version} is sound; digest {found.digest}")
        if found.document.reviewed_by is None:
            err.print("no clinician has reviewed it")


@guideline_app.command("table")
def guideline_table(
    name: Which,
    over: Annotated[str, typer.Option(help="Fields to vary, with commas; those that must be known if left out.")] = "",
    record_file: Annotated[Path | None, typer.Option("--record", help="What the other fields are.")] = None,
    json: Json = False,
) -> None:
    """Print the truth table: every side of every threshold, and unknown, with what is recommended.

    Fields that are not varied are unremarkable, or as in --record.
    """
    with told():
        found = opened(name)
        around = record.parse(record_file.read_bytes()[:LARGEST_RECORD], found) if record_file else None
        fields = tuple(over.replace(" ", "").split(",")) if over else table.fields(found)
        rows = list(table.rows(found, fields, around))
    if json:
        return show(
            [
                {"record": {field: plain(value) for field, value in row.values.items()}, "recommended": row.recommended}
                for row in rows
            ]
        )
    shown = Table(*fields, "recommended", title=f"{found.id} {found.document.version}", box=SIMPLE)
    for row in rows:
        mark = " (provisional)" if row.provisional else ""
        shown.add_row(*(said(value) for value in row.values.values()), f"{row.recommended or '-'}{mark}")
    wide(shown)


@guideline_app.command("diff")
def guideline_diff(
    old: Which, new: Annotated[str, typer.Argument(metavar="NAME-or-FILE", help="The other one.")], json: Json = False
) -> None:
    """Compare two guidelines: the parts that differ, and records on which they recommend different things."""
    with told():
        found = differences(opened(old), opened(new))
    if json:
        return show(found)
    for side in ("old", "new"):
        print(f"{side}: {found[side]['name']} {found[side]['version']} digest {found[side]['digest']}")
    parts = Table("part", "name", "change", "old", "new", box=SIMPLE)
    for part in found["parts"]:
        parts.add_row(part["part"], part["name"], part["change"], *(brief(part[side]) for side in ("old", "new")))
    wide(parts)
    if not found["examples"]:
        return print("they agree on every record tried")
    names = list(found["examples"][0]["record"])
    shown = Table(*names, "old", "new", title=f"they disagree on {found['disagreements']} records, such as", box=SIMPLE)
    for case in found["examples"]:
        shown.add_row(*(said(value) for value in case["record"].values()), case["old"] or "-", case["new"] or "-")
    wide(shown)


def opened(name: str, digest: str | None = None) -> Guideline:
    """A guideline by name or file."""
    if name in library.names():
        return library.find(name, digest)
    found = load(library.open_file(name))
    if digest is not None and found.digest != digest.lower().removeprefix("0x"):
        raise UnknownGuideline(f"{name} is not the file that was pinned: its digest is {found.digest}")
    return found


def assignments(pairs: list[str]) -> dict[str, Any]:
    """`FIELD=VALUE` pairs as a record; a value is JSON, or a bare word."""
    found: dict[str, Any] = {}
    for pair in pairs:
        field, equals, text = pair.partition("=")
        if not equals:
            raise RecordRefused("--what-if takes FIELD=VALUE", field)
        try:
            found[field.strip()] = json_library.loads(text, parse_float=Decimal, parse_int=Decimal)
        except ValueError:
            found[field.strip()] = text.strip()
    return found


def as_json(datum: Datum) -> dict[str, Any]:
    """The declaration of a field, as JSON."""
    low_high = [plain(bound) for bound in datum.range] if datum.range else None
    example = plain(datum.example)
    return datum.model_dump(exclude={"step"}) | {"range": low_high, "example": example}


@contextmanager
def told() -> Iterator[None]:
    """Turns a refusal into one plain line."""
    try:
        yield
    except (GuidelineError, RecordRefused, UnknownGuideline) as error:
        fail(str(error))


def wide(shown: Table) -> None:
    """Prints a table; where nobody watches, wide enough that no name is cut."""
    (out if out.is_terminal else Console(width=240)).print(shown)


def show(found: Any) -> None:
    """Prints JSON."""
    print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())


def said(value: object) -> str:
    """A value in a table."""
    return "unknown" if value is None else str(value).lower()


def brief(part: dict[str, Any] | None) -> str:
    """A part of a guideline in a table."""
    plainly = {
        key: ", ".join(f"{name} {sign}" for name, sign in value.items()) if isinstance(value, dict) else value
        for key, value in (part or {}).items()
    }
    return escape("; ".join(f"{key} {value}" for key, value in plainly.items() if value is not None))
