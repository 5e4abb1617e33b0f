"""Holds the models and the guidelines that Leben Mesh serves, and exports what an author of a DApp needs.

Nothing here knows HTTP or Ray; of money it knows a declared price. `import dapps` loads no torch: a DApp imports it
inside `load`. Read `dapps/api/dapp.py` first.
"""

from dapps.api.calls import ChildFailed
from dapps.api.dapp import DApp
from dapps.api.types import Case, ClinicalFile, Coding, Finding, IntakeRefused, Prepared, Price, Report, Shares, Tensor

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
