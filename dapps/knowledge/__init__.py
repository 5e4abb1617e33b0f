"""Reads guidelines as data, checks them, weighs them on a record and explains the result; a person commits.

May import only the notice; knows no HTTP, torch or money. Read `guideline.py` first; `docs/write-a-guideline.md` shows
the file format.
"""

from dapps.knowledge.changes import what_if
from dapps.knowledge.explain import explain
from dapps.knowledge.fields import RecordRefused
from dapps.knowledge.guideline import Guideline, load
from dapps.knowledge.library import UnknownGuideline, find, names
from dapps.knowledge.lint import lint
from dapps.knowledge.process import Commitment, CommitRefused, Process, State
from dapps.knowledge.record import Observation, from_probability
from dapps.knowledge.source import Flaw, GuidelineError
from dapps.knowledge.weigh import Weighed, weigh

__all__ = [
    "CommitRefused",
    "Commitment",
    "Flaw",
    "Guideline",
    "GuidelineError",
    "Observation",
    "Process",
    "RecordRefused",
    "State",
    "UnknownGuideline",
    "Weighed",
    "explain",
    "find",
    "from_probability",
    "lint",
    "load",
    "names",
    "weigh",
    "what_if",
]
