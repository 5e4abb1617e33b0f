"""DApps: the models and the knowledge that Leben Mesh serves.

Everything an author needs is importable from here; nothing knows HTTP or Ray, or of money more than a declared price.
`import dapps` never imports torch: a DApp imports it inside `load`. Read `dapps/api/dapp.py` first.
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
