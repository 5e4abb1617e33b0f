"""Checks a receipt offline: `ReceiptFile` holds it with its place in the journal's hash chain and its Merkle proof.

The check needs the mesh's address and the epoch's root, and trusts nothing else in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from channels.protocol import HASH, HEX, Json, checksummed, hex_bytes, keccak
from channels.receipts.merkle import STEP_BYTES, verify_proof
from channels.receipts.receipt import Receipt, SignedReceipt
from channels.receipts.share import BadReceipt, typed

CHAIN_START = "0x" + "00" * 32
"""The journal's chain before the first receipt."""


def extend_chain(chain: str, receipt: Receipt) -> str:
    """The journal's chain after a receipt, from the chain before it."""
    # Over the struct hash, not the digest: the chain records what happened, on whatever ledger it settles.
    return "0x" + keccak(hex_bytes(chain) + receipt.struct_hash()).hex()


@dataclass(frozen=True, slots=True)
class Proof:
    """Proof that a receipt's digest, `leaf`, is in an epoch: check it with `verify_proof(leaf, steps, root)`."""

    epoch: int
    root: str
    leaf: bytes
    steps: tuple[bytes, ...]

    def to_json(self) -> Json:
        """The public form; the leaf follows from the receipt."""
        return {"epoch": self.epoch, "root": self.root, "steps": ["0x" + step.hex() for step in self.steps]}

    @classmethod
    def from_json(cls, raw: object, leaf: bytes) -> Proof:
        """Parses the public form.

        Raises:
            BadReceipt: it is malformed.
        """
        if not isinstance(raw, dict):
            raise BadReceipt("a proof is an epoch, its root and steps")
        steps = typed(raw, "steps", list)
        if not all(isinstance(step, str) and HEX.fullmatch(step) and len(step) == 2 + 2 * STEP_BYTES for step in steps):
            raise BadReceipt(f"a proof's steps are {STEP_BYTES} bytes in hex")
        return cls(typed(raw, "epoch", int), str(raw.get("root")), leaf, tuple(map(hex_bytes, steps)))


@dataclass(frozen=True, slots=True)
class ReceiptCheck:
    """One thing that was checked: `sound` is None where the file cannot decide it yet."""

    what: str
    sound: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """A receipt and its proofs.

    Attributes:
        number: its place in the journal, from 1.
        chain_before, chain_after: the journal's chain around it.
        proof: None until the receipt is settled.
    """

    signed: SignedReceipt
    chain_id: int
    number: int
    chain_before: str
    chain_after: str
    proof: Proof | None

    def to_json(self) -> Json:
        """The receipt's public form with `chainId`, `chain` and `proof`."""
        chain = {"number": self.number, "before": self.chain_before, "after": self.chain_after}
        proof = None if self.proof is None else self.proof.to_json()
        return self.signed.to_json() | {"chainId": self.chain_id, "chain": chain, "proof": proof}

    @classmethod
    def from_json(cls, raw: object) -> ReceiptFile:
        """Parses the public form.

        Raises:
            ChannelError: it is malformed.
        """
        signed = SignedReceipt.from_json(raw)
        if not isinstance(raw, dict) or not isinstance(raw.get("chain"), dict):
            raise BadReceipt("a receipt file is a receipt with chainId, chain and proof")
        chain, chain_id = raw["chain"], typed(raw, "chainId", int)
        before, after = typed(chain, "before", str), typed(chain, "after", str)
        if not HASH.fullmatch(before) or not HASH.fullmatch(after):
            raise BadReceipt("the chain's ends are 32 bytes in lower-case hex")
        proof = None
        if raw.get("proof") is not None:
            proof = Proof.from_json(raw["proof"], signed.receipt.digest(chain_id))
        return cls(signed, chain_id, typed(chain, "number", int), before, after, proof)

    def check(self, mesh: str, root: str | None) -> list[ReceiptCheck]:
        """Checks the receipt without a connection.

        Args:
            mesh: the address that signs the mesh's receipts.
            root: the Merkle root of the receipt's epoch, from the ledger; None leaves inclusion open.
        """
        receipt, signer = self.signed.receipt, checksummed(mesh)
        signed = signer is not None and self.signed.verify(self.chain_id, signer)
        chained = extend_chain(self.chain_before, receipt) == self.chain_after
        return [
            ReceiptCheck("signature", signed, f"by {mesh}"),
            ReceiptCheck("chain", chained, f"receipt {self.number} of the mesh"),
            self._check_inclusion(root),
        ]

    def _check_inclusion(self, root: str | None) -> ReceiptCheck:
        if self.proof is None:
            return ReceiptCheck("inclusion", None if root is None else False, "it is in no settled epoch yet")
        if root is None:
            return ReceiptCheck("inclusion", None, f"name the root of epoch {self.proof.epoch}: --root")
        leaf = self.signed.receipt.digest(self.chain_id)
        included = HASH.fullmatch(root.lower()) is not None and verify_proof(leaf, self.proof.steps, hex_bytes(root))
        return ReceiptCheck("inclusion", included, f"under the root of epoch {self.proof.epoch}")


def check_sequence(files: Sequence[ReceiptFile]) -> list[ReceiptCheck]:
    """Checks that successive receipts of one channel join, so that no charge is hidden between them."""
    receipts = [file.signed.receipt for file in files]
    checks = []
    for first, second in pairwise(sorted(receipts, key=lambda receipt: (receipt.channel_id, receipt.seq))):
        if first.channel_id == second.channel_id:
            what = f"receipts {first.seq} and {second.seq} of {first.channel_id[:10]}…"
            joined = first.after == second.before if second.seq == first.seq + 1 else None
            checks.append(ReceiptCheck(what, joined if second.seq > first.seq else False, _gap(first.seq, second.seq)))
    return checks


def _gap(first: int, second: int) -> str:
    missing = second - first - 1
    return "the second begins where the first ends" if missing == 0 else f"{missing} between them are not here"
