"""DApps: the models and the knowledge that Leben Mesh serves.

Everything an author needs is importable from here; nothing knows HTTP or Ray, or of money more than a declared price.
`import dapps` never imports torch: a DApp imports it inside `load`. Read `dapps/api.py` first.
"""

from dapps.api import DApp
from dapps.compose import ChildFailed
from dapps.types import (
    Case,
    ClinicalFile,
    Coding,
    Finding,
    IntakeRefused,
    Prepared,
    Price,
    Report,
    Shares,
    Tensor,
)

__all__ = [
    "Case",
    "ChildFailed",
    "ClinicalFile",
    "Coding",
    "DApp",
    "Finding",
    "IntakeRefused",
    "Prepared",
    "Price",
    "Report",
    "Shares",
    "Tensor",
]
