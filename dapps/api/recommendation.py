"""Adds a guideline's recommendation to a report, for the doctor and for the patient.

Made from the explanation tree alone, see `dapps/knowledge/explain.py`.
"""

from __future__ import annotations

from dataclasses import replace

from dapps.api.types import Report
from dapps.knowledge.explain import Tree
from dapps.knowledge.render import patient


def with_recommendation(report: Report, tree: Tree, subject: str) -> Report:
    """The report with the tree as its decision.

    Args:
        report: what the models answered; its texts stay.
        tree: from `dapps.knowledge.explain`.
        subject: what the recommendation is about, e.g. ``"Thrombolysis"``.
    """
    advice = f"{tree['guideline']['name']}: {tree['reason']}"
    return replace(
        report,
        summary=f"{report.summary} {subject}: {tree['recommended'] or 'cannot be said'}.".strip(),
        recommendation=f"{advice} {report.recommendation}".strip(),
        patient_summary=f"{report.patient_summary}\n\n{patient(tree)}".strip(),
        decision=tree,
    )
