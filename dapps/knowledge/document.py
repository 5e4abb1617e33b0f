"""Defines the parts of a guideline file: data, derived facts, citations and PROforma tasks.

Plans, enquiries, decisions and actions follow Sutton and Fox, JAMIA 2003;10(5):433-443. An argument is written once and
names the candidates that it supports or opposes: `++` confirms, `+` is for, `-` is against, `--` excludes.
Every part refuses unknown keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic import Field as Of

from dapps.knowledge.grammar import BOOLEAN, NUMBER, TEXT
from dapps.knowledge.source import Path

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,79}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Condition = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Support = Literal["++", "+", "-", "--"]
Origin = Literal["record", "model", "user"]
KINDS = ("enquiry", "decision", "action", "plan")


class Part(BaseModel):
    """The rules of every part: no unknown key, no conversion of types, no change after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Code(Part):
    """A concept: a LOINC number or a SNOMED CT identifier."""

    system: Literal["loinc", "snomed"]
    code: str


class Datum(Part):
    """One typed datum. Numbers carry a UCUM `unit`, the `range` of what is possible, and the `step` they come in."""

    text: Text
    type: Literal["number", "integer", "boolean", "choice"]
    origin: Annotated[list[Origin], Of(min_length=1)]
    code: Code | None = None
    unit: str | None = None
    range: Annotated[list[Decimal], Of(min_length=2, max_length=2)] | None = None
    step: Annotated[Decimal, Of(gt=0)] = Decimal(1)
    options: Annotated[list[Name], Of(min_length=2, max_length=40)] | None = None
    example: Decimal | bool | str | None = None
    group: Text | None = None

    @property
    def kind(self) -> str:
        """Its type in conditions: ``number``, ``boolean`` or ``text``."""
        return {"boolean": BOOLEAN, "choice": TEXT}.get(self.type, NUMBER)


class Derived(Part):
    """A named fact: one condition, or two cut-offs with a grey zone between them that is unknown."""

    text: Text
    condition: Annotated[Condition | None, Of(alias="if")] = None
    true_if: Condition | None = None
    false_if: Condition | None = None


class Citation(Part):
    """A publication, and how its facts were read."""

    title: Text
    year: Decimal
    url: Text
    read: Text


class Cite(Part):
    """The place of a fact in its source: class of recommendation, level of evidence, and how it was read there."""

    source: Annotated[Name, Of(alias="from")]
    place: Text | None = None
    grade: Annotated[Text | None, Of(alias="class")] = None
    level: Text | None = None
    confidence: Literal["read", "secondary", "recalled", "inferred"] = "read"
    why: Text | None = None


class Argument(Part):
    """A reason: where its condition holds, it supports or opposes candidates, with a weight for `+` and `-`.

    `when_unknown` is ``blocks`` (no recommendation that it could change), ``open`` (the recommendation is provisional
    and lists the argument), or ``ignored`` where the guideline itself says not to wait for it.
    """

    id: Name
    condition: Annotated[Condition, Of(alias="if")]
    text: Text
    supports: Annotated[dict[Name, Support], Of(min_length=1)]
    weight: Annotated[Decimal, Of(ge=0, le=100)] = Decimal(1)
    when_unknown: Literal["blocks", "open", "ignored"] = "blocks"
    cite: Cite
    patient: Text | None = None


class Candidate(Part):
    """An option. `recommend_at` is the net support from which it is recommended; one that `defers` asks a person."""

    name: Name
    text: Text
    patient: Text
    recommend_at: Decimal = Decimal(1)
    defers: bool = False


class Task(Part):
    """The parts of every task: its name, the tasks it comes after, the condition under which it is done."""

    name: Name
    after: list[Name] = []
    when: Condition | None = None


class Enquiry(Task):
    """Asks for data: it is complete when all that it `requires` is known."""

    kind: Literal["enquiry"]
    requires: list[Name] = []
    asks: list[Name] = []


class Decision(Task):
    """Candidates and the arguments about them; a named person commits to one."""

    kind: Literal["decision"]
    candidates: Annotated[list[Candidate], Of(min_length=2, max_length=20)]
    arguments: Annotated[list[Argument], Of(min_length=1, max_length=150)]


class Action(Task):
    """Something that a person does; `dose` is for professionals only."""

    kind: Literal["action"]
    text: Text
    patient: Text | None = None
    dose: Text | None = None
    abort_if: Condition | None = None
    cite: Cite


class Plan(Task):
    """Tasks that belong together; the file's own tasks form the outermost one."""

    kind: Literal["plan"]
    abort_if: Condition | None = None
    tasks: Annotated[list[AnyTask], Of(min_length=1, max_length=100)]


AnyTask = Annotated[Enquiry | Decision | Action | Plan, Of(discriminator="kind")]


class GuidelineDocument(Part):
    """A guideline file as written; a `Guideline` is a checked one."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]
    title: Text
    status: Literal["research-only", "superseded"]
    superseded_by: str | None = None
    population: Text
    reviewed_by: Text | None
    citations: Annotated[dict[Name, Citation], Of(min_length=1)]
    data: Annotated[dict[Name, Datum], Of(min_length=1, max_length=150)]
    derived: Annotated[dict[Name, Derived], Of(max_length=100)] = {}
    tasks: Annotated[list[AnyTask], Of(min_length=1, max_length=100)]


def walk(tasks: list[AnyTask], path: Path = ("tasks",)) -> Iterator[tuple[Path, AnyTask]]:
    """Every task with its path, plans before what is in them."""
    for index, task in enumerate(tasks):
        yield (*path, index), task
        if isinstance(task, Plan):
            yield from walk(task.tasks, (*path, index, "tasks"))


def written_conditions(document: GuidelineDocument) -> Iterator[tuple[Path, str]]:
    """Every condition as it is written, with its path."""
    for name, fact in document.derived.items():
        for key, text in (("if", fact.condition), ("true_if", fact.true_if), ("false_if", fact.false_if)):
            if text is not None:
                yield ("derived", name, key), text
    for path, task in walk(document.tasks):
        for key in ("when", "abort_if"):
            text = getattr(task, key, None)
            if text is not None:
                yield (*path, key), text
        if isinstance(task, Decision):
            for index, argument in enumerate(task.arguments):
                yield (*path, "arguments", index, "if"), argument.condition
