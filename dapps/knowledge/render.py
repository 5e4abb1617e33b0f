"""Renders the explanation tree as text: a Markdown table of pros and cons, and a page for patients without any dose.

Uses the tree of `explain.py` alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from dapps.knowledge.explain import Tree

MARK = {"true": "holds", "false": "does not hold", "unknown": "unknown"}
NONE = "-"
MAX_UNKNOWN = 4


def markdown(tree: Tree) -> str:
    """Options with their pros and cons, what is unknown, what would change it, and the sources, as Markdown."""
    guideline = tree["guideline"]
    lines = [
        f"# {guideline['title']}",
        "",
        f"**Recommended: {tree['recommended'] or 'nothing can be said'}**"
        + (" (provisional)" if tree["provisional"] else ""),
        "",
        tree["reason"],
        "",
        "| option | support | for | against | unknown |",
        "| --- | --- | --- | --- | --- |",
    ]
    for option in tree["options"]:
        parts = [_cell(_reasons(option, sign)) for sign in ("+", "-", "?")]
        lines.append(f"| {option['name']} | `{option['support']}` | {' | '.join(parts)} |")
    lines += [
        "",
        *_bullets("Unknown", [", ".join(tree["unknown"])] if tree["unknown"] else []),
        *_bullets("Would change", list(changes(tree))),
    ]
    lines += _bullets("If committed to", [action_line(action) for action in tree["actions"]])
    sources = [f"{cited['title']} ({cited['year']}), {cited['url']}" for cited in guideline["citations"].values()]
    lines += _bullets("Sources", sources)
    lines += [f"*{notice}*" for notice in tree["notices"]]
    lines += ["", f"`{guideline['name']}` {guideline['version']}, digest `{guideline['digest']}`"]
    return "\n".join(lines) + "\n"


def patient(tree: Tree) -> str:
    """The suggestion and its reasons in plain words for the patient: no dose, no drug, no number."""
    chosen = next((option for option in tree["options"] if option["name"] == tree["recommended"]), None)
    if chosen is None:
        lines = ["There is not enough information yet to suggest what to do next. Your care team will complete it."]
    else:
        lines = [chosen["patient"]]
        reasons = [
            argument["patient"]
            for argument in chosen["arguments"]
            if argument["truth"] == "true" and argument["support"].startswith("+") and argument["patient"]
        ]
        lines += ["", "Why:", *(f"- {reason}" for reason in reasons)] if reasons else []
        steps = [action["patient"] for action in tree["actions"] if action["patient"]]
        lines += ["", "What may come next:", *(f"- {step}" for step in steps)] if steps else []
        if tree["provisional"]:
            lines += ["", "Your care team still has questions to ask before anything is decided."]
    lines += [
        "",
        "This text comes from a research computer program that no clinician has reviewed."
        if tree["guideline"]["reviewed_by"] is None
        else "This text comes from a research computer program.",
        "It is not medical advice. Your doctors decide together with you.",
    ]
    return "\n".join(lines) + "\n"


def changes(tree: Tree) -> Iterator[str]:
    """What would change the recommendation, one sentence each."""
    for change in tree["would_change"]:
        value = str(change["value"]).lower() if isinstance(change["value"], bool) else change["value"]
        yield f"to {change['recommended'] or 'nothing'} if {change['field']} were {value}"


def action_line(action: Tree) -> str:
    """An action with its dose and its stopping condition, for professionals."""
    dose = f" {action['dose']}" if action["dose"] else ""
    stop = f" Stop if {action['abort_if']}." if action["abort_if"] else ""
    return f"{action['text']}{dose}{stop}{_doubt(action)}"


def reason_line(argument: Tree) -> str:
    """An argument with the values it used and its place in the source."""
    used = ", ".join(
        f"{value['field']}={_shown(value['value'])}{_unit(value)}"
        + (f" [{value['source']}]" if value["source"] else "")
        for value in argument["values"]
    )
    cite = argument["cite"]
    place = ", ".join(part for part in (cite["from"], cite["place"], _grade(cite)) if part)
    neutral = " (noted, without weight)" if argument["weight"] == 0 and argument["support"] in "+-" else ""
    return f"`{argument['support']}` {argument['text']}{neutral} ({used}; {place}){_doubt(argument)}"


def _reasons(option: Tree, sign: str) -> list[str]:
    if sign == "?":
        unknown = [
            f"{argument['id']} `{argument['support']}`"
            for argument in option["arguments"]
            if argument["truth"] == "unknown"
        ]
        return unknown[:MAX_UNKNOWN] + (
            [f"and {len(unknown) - MAX_UNKNOWN} more"] if len(unknown) > MAX_UNKNOWN else []
        )
    held = [argument for argument in option["arguments"] if argument["truth"] == "true"]
    return [reason_line(argument) for argument in held if argument["support"].startswith(sign)]


def _doubt(part: Tree) -> str:
    cite = part["cite"]
    if cite["confidence"] == "read":
        return ""
    return f" [confidence: {cite['confidence']}{': ' + cite['why'] if cite['why'] else ''}]"


def _grade(cite: Tree) -> str:
    return " ".join(part for part in (cite["class"] and f"class {cite['class']}", cite["level"]) if part)


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unit(value: Tree) -> str:
    plainly = value["unit"] and value["unit"] != "1" and not value["unit"].startswith("{")
    return f" {value['unit']}" if plainly and value["value"] is not None else ""


def _cell(parts: list[str]) -> str:
    return "<br>".join(part.replace("|", "\\|") for part in parts) or NONE


def _bullets(title: str, entries: list[str]) -> list[str]:
    return [f"{title}:", "", *(f"- {entry}" for entry in entries), ""] if entries else []
