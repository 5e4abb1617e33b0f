"""Makes and checks receipts: what was charged, how it was split, and the Merkle proof that an epoch settled it.

May import protocol and errors.
"""

from channels.receipts.merkle import leaf_node, merkle_root, root_above, siblings, verify_proof
from channels.receipts.part import MAX_PART_DEPTH, MAX_PARTS, Part, check_parts
from channels.receipts.receipt import Owed, Receipt, SignedReceipt
from channels.receipts.receipt_file import CHAIN_START, Proof, ReceiptFile, check_sequence, extend_chain
from channels.receipts.share import CARRIERS, BadReceipt, Share
from channels.receipts.split import ShareRows, split_charge, without_model

__all__ = [
    "CARRIERS",
    "CHAIN_START",
    "MAX_PARTS",
    "MAX_PART_DEPTH",
    "BadReceipt",
    "Owed",
    "Part",
    "Proof",
    "Receipt",
    "ReceiptFile",
    "Share",
    "ShareRows",
    "SignedReceipt",
    "check_parts",
    "check_sequence",
    "extend_chain",
    "leaf_node",
    "merkle_root",
    "root_above",
    "siblings",
    "split_charge",
    "verify_proof",
    "without_model",
]
