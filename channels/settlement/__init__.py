"""Claims charged money on the ledger, splits it among owners and publishes each epoch's Merkle root.

May import every room of `channels` but evm.
"""

from channels.settlement.backup import backup, restore
from channels.settlement.epoch import Totals
from channels.settlement.epochs import Epochs
from channels.settlement.merkle_pieces import Piece
from channels.settlement.settler import Settlement, SettlePolicy, Settler, SqlThread, drain

__all__ = [
    "Epochs",
    "Piece",
    "SettlePolicy",
    "Settlement",
    "Settler",
    "SqlThread",
    "Totals",
    "backup",
    "drain",
    "restore",
]
