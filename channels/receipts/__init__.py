"""Makes and checks receipts: what was charged, how it was split, and the Merkle proof that an epoch settled it.

May import protocol and errors.
"""

from channels.receipts.part import MOST_DEPTH, MOST_PARTS, BadReceipt, Part, check_parts
from channels.receipts.receipt import Owed, Receipt, SignedReceipt, merkle_proof, merkle_root
from channels.receipts.receipt_file import START, Proof, ReceiptFile, check_sequence, link
from channels.receipts.split import Rows, Share, split, without_model

__all__ = [
    "MOST_DEPTH",
    "MOST_PARTS",
    "START",
    "BadReceipt",
    "Owed",
    "Part",
    "Proof",
    "Receipt",
    "ReceiptFile",
    "Rows",
    "Share",
    "SignedReceipt",
    "check_parts",
    "check_sequence",
    "link",
    "merkle_proof",
    "merkle_root",
    "split",
    "without_model",
]
