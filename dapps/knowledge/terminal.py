"""Shows the explanation tree in a terminal: the recommendation, options with pros and cons, unknown fields.

Uses the tree of `explain.py` alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dapps.knowledge.explain import Tree
from dapps.knowledge.render import action_line, changes, reason_line

COLOUR = {"++": "bold green", "+": "green", "0": "dim", "-": "yellow", "--": "bold red"}
MAX_CHANGES, MAX_UNKNOWN = 8, 12


def view(tree: Tree) -> RenderableType:
    """The tree for a rich console."""
    guideline = tree["guideline"]
    head = Text(tree["recommended"] or "nothing can be recommended", style="bold")
    if tree["provisional"]:
        head.append("  provisional", style="yellow")
    body: list[RenderableType] = [head, Text(tree["reason"]), _options(tree), *_lists(tree)]
    body += [Text(notice, style="dim italic") for notice in tree["notices"]]
    title = f"{guideline['name']} {guideline['version']}"
    return Panel(Group(*body), title=escape(title), subtitle=f"digest {guideline['digest'][:12]}", title_align="left")


def _options(tree: Tree) -> Table:
    table = Table("option", "support", "for and against", expand=True, show_lines=True)
    for option in tree["options"]:
        held = [argument for argument in option["arguments"] if argument["truth"] == "true"]
        reasons = Text()
        for index, argument in enumerate(sorted(held, key=lambda argument: "+" not in argument["support"])):
            line = reason_line(argument).replace("`", "")
            reasons.append(("\n" if index else "") + line, style=COLOUR[argument["support"]])
        support = option["support"] + (" conflict" if option["conflict"] else "")
        chosen = "bold" if option["name"] == tree["recommended"] else ""
        table.add_row(Text(option["name"], style=chosen), Text(support, style=COLOUR[option["support"]]), reasons)
    return table


def _lists(tree: Tree) -> Iterator[RenderableType]:
    for action in tree["actions"]:
        yield Text(f"if committed to: {action_line(action)}")
    for title, entries, most in (
        ("needed: ", tree["needed"], MAX_UNKNOWN),
        ("unknown: ", tree["unknown"], MAX_UNKNOWN),
        ("would change ", list(changes(tree)), MAX_CHANGES),
    ):
        if entries:
            more = f", … {len(entries) - most} more" if len(entries) > most else ""
            yield Text(title + (", ".join if title[-2] == ":" else "; ".join)(entries[:most]) + more)
