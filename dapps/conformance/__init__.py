"""Checks that a DApp keeps its declarations: the same rules for an author's tests, `leben dapp check` and the mesh.

May import evaluation, intake, packages, api and knowledge; knows no server. `suite` runs the rules in order.
"""

from dapps.conformance.answers import run
from dapps.conformance.declared import may_cost
from dapps.conformance.failure import CheckFailed
from dapps.conformance.local_calls import answer_locally, installed
from dapps.conformance.suite import Limits, check_dapp, examine

__all__ = ["CheckFailed", "Limits", "answer_locally", "check_dapp", "examine", "installed", "may_cost", "run"]
