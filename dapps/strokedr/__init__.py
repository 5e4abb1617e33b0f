"""Provides StrokeDr.: haemorrhage on head CT and outcome from the admission record; no finding is called "stroke".

Importing this package loads neither torch nor weights. Read `dapps/strokedr/dapp.py` first.
"""

from dapps.strokedr.dapp import StrokeDr

__all__ = ["StrokeDr"]
