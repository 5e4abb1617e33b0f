"""StrokeDr.: head CT. Intracranial haemorrhage on one slice; never the word "stroke" for what was found.

Importing this package loads neither torch nor weights. Read `dapps/strokedr/dapp.py` first.
"""

from dapps.strokedr.dapp import StrokeDr

__all__ = ["StrokeDr"]
