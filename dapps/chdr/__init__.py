"""Provides CHDr., a murmur model on phonocardiograms: its answer is "murmur heard, refer", never a disease.

Importing this package loads neither torch nor weights. Read `dapps/chdr/dapp.py` first.
"""

from dapps.chdr.dapp import CHDr

__all__ = ["CHDr"]
