"""Defines what an author writes: the `DApp` class and the values that it takes and returns.

May import only knowledge, and loads it where a guideline is named: `import dapps` stays light.
"""

from dapps.api.arrays import from_torch, to_torch
from dapps.api.calls import ChildFailed, asking
from dapps.api.configuration import Configuration, Declared, put
from dapps.api.dapp import MAX_SAMPLES, DApp, Progress
from dapps.api.manifest import Manifest, packaged
from dapps.api.scoring import Cutoffs, Scored, Skipped
from dapps.api.types import (
    BASIS_POINTS,
    DTYPES,
    Array,
    Case,
    ClinicalFile,
    Coding,
    Finding,
    Inputs,
    IntakeRefused,
    Prepared,
    Price,
    Provenance,
    Report,
    Shares,
    Tensor,
)
from dapps.notice import RESEARCH_USE

__all__ = [
    "BASIS_POINTS",
    "DTYPES",
    "MAX_SAMPLES",
    "RESEARCH_USE",
    "Array",
    "Case",
    "ChildFailed",
    "ClinicalFile",
    "Coding",
    "Configuration",
    "Cutoffs",
    "DApp",
    "Declared",
    "Finding",
    "Inputs",
    "IntakeRefused",
    "Manifest",
    "Prepared",
    "Price",
    "Progress",
    "Provenance",
    "Report",
    "Scored",
    "Shares",
    "Skipped",
    "Tensor",
    "asking",
    "from_torch",
    "packaged",
    "put",
    "to_torch",
]
