"""Reads the text of a guideline file as plain data, with the line of every part.

Some of YAML is dangerous: aliases can expand a few lines to gigabytes, `no` can mean False, a repeated key hides the
first. All of that is refused with its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml

from dapps.structure import StructureRefused, check_yaml

MAX_BYTES, MAX_DEPTH, MAX_EVENTS = 262_144, 12, 60_000
PLAIN_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,9})?", re.ASCII)
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Flaw:
    """One fault of a guideline file and its line; `severity` is ``"error"`` or ``"warning"``."""

    line: int
    cause: str
    severity: str = "error"


class GuidelineError(Exception):
    """A file that is not a guideline. `flaws` holds them all; the message is the first."""

    def __init__(self, flaws: list[Flaw]) -> None:
        self.flaws = sorted(flaws)
        first = self.flaws[0]
        more = f" (and {len(flaws) - 1} more)" if len(flaws) > 1 else ""
        super().__init__(f"line {first.line}: {first.cause}{more}")


@dataclass(frozen=True, slots=True)
class Source:
    """Plain data (dicts, lists, texts, decimals, truths, None) and the line of each part by its path."""

    data: dict[str, Any]
    lines: dict[Path, int] = field(repr=False)

    def line(self, path: Path) -> int:
        """The line of this part, or of the closest part around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read(raw: bytes) -> Source:
    """Reads a file's bytes.

    Raises:
        GuidelineError: too large, not UTF-8, not YAML, or YAML beyond plain data.
    """
    if len(raw) > MAX_BYTES:
        raise _error(1, f"the file is larger than {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(raw[: error.start].count(b"\n") + 1, "the file is not UTF-8") from None
    try:
        check_yaml(text, max_events=MAX_EVENTS, max_depth=MAX_DEPTH)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except StructureRefused as error:
        raise _error(error.line, error.cause) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _error(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError:
        raise _error(1, "not YAML: a character that it does not allow") from None
    lines: dict[Path, int] = {}
    data = _plain(node, (), lines) if node is not None else None
    if not isinstance(data, dict):
        raise _error(1, "a guideline is a mapping that begins with `id:`")
    return Source(data, lines)


def _plain(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            name = _scalar(key) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                raise _error(
                    key.start_mark.line + 1, "a key is a plain word; put it in quotes if YAML reads it otherwise"
                )
            if name in mapping:
                raise _error(key.start_mark.line + 1, f"{name} is there twice")
            lines[(*path, name)] = key.start_mark.line + 1
            mapping[name] = _plain(value, (*path, name), lines)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), lines) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.ScalarNode):
        raise _error(line, "this is no plain data")
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    kind, text, line = node.tag.rpartition(":")[2], node.value, node.start_mark.line + 1
    if kind == "str":
        return " ".join(text.split())
    if kind == "null":
        return None
    if kind == "bool" and text in ("true", "false"):
        return text == "true"
    if kind in ("int", "float") and PLAIN_NUMBER.fullmatch(text):
        return Decimal(text)
    raise _error(line, f"{kind} is not read here: write true, false, null, a plain number, or quote the text")


def _error(line: int, cause: str) -> GuidelineError:
    return GuidelineError([Flaw(line, cause)])
