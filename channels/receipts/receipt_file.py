"""`ReceiptFile`: a receipt with everything needed to check it without asking anybody.

Holds the signed receipt, its link in the journal's chain and its Merkle proof in a settled epoch. Whoever checks needs
the mesh's address and the epoch's root, and trusts nothing else in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from channels.protocol import HASH, HEX, Json, checksummed, keccak
from channels.receipts.part import BadReceipt
from channels.receipts.receipt import Receipt, SignedReceipt, verify_proof

STEP_BYTES = 33


@dataclass(frozen=True, slots=True)
class ReceiptCheck:
    """One thing that was checked: `sound` is None where the file cannot say yet."""

    what: str
    sound: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """A receipt and its proofs; `number` is its place in the journal, from 1.

    `chain_before` and `chain_after` are the journal's chain around it; `proof` is None until it is settled.
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
        return self.signed.to_json() | {"chainId": self.chain_id, "chain": chain, "proof": _proof_json(self.proof)}

    @classmethod
    def from_json(cls, raw: object) -> ReceiptFile:
        """Reads the public form.

        Raises:
            ChannelError: it is not one.
        """
        signed = SignedReceipt.from_json(raw)
        if not isinstance(raw, dict) or not isinstance(raw.get("chain"), dict):
            raise BadReceipt("a receipt file is a receipt with chainId, chain and proof")
        chain = raw["chain"]
        ends = chain.get("before"), chain.get("after")
        if not all(isinstance(end, str) and HASH.fullmatch(end) for end in ends):
            raise BadReceipt("the chain's ends are 32 bytes in lower-case hex")
        if type(raw.get("chainId")) is not int or type(chain.get("number")) is not int:
            raise BadReceipt("chainId and the receipt's number are integers")
        return cls(signed, raw["chainId"], chain["number"], *ends, _proof(raw.get("proof"), signed, raw["chainId"]))

    def check(self, mesh: str, root: str | None) -> list[ReceiptCheck]:
        """Checks the receipt on its own, without any connection.

        Args:
            mesh: the address that signs the mesh's receipts.
            root: the Merkle root of the receipt's epoch, from the ledger; None to leave inclusion open.
        """
        receipt = self.signed.receipt
        signer = checksummed(mesh)
        findings = [
            ReceiptCheck("signature", signer is not None and self.signed.verify(self.chain_id, signer), f"by {mesh}"),
            ReceiptCheck(
                "chain",
                extend_chain(self.chain_before, receipt) == self.chain_after,
                f"receipt {self.number} of the mesh",
            ),
        ]
        if self.proof is None:
            return [
                *findings,
                ReceiptCheck("inclusion", None if root is None else False, "it is in no settled epoch yet"),
            ]
        if root is None:
            return [*findings, ReceiptCheck("inclusion", None, f"name the root of epoch {self.proof.epoch}: --root")]
        inside = HASH.fullmatch(root.lower()) is not None and verify_proof(
            receipt.digest(self.chain_id), self.proof.steps, bytes.fromhex(root[2:])
        )
        return [*findings, ReceiptCheck("inclusion", inside, f"under the root of epoch {self.proof.epoch}")]


def check_sequence(files: Sequence[ReceiptFile]) -> list[ReceiptCheck]:
    """Checks that receipts of one channel that follow each other join: no charge is hidden between them."""
    ordered = sorted(files, key=lambda file: (file.signed.receipt.channel_id, file.signed.receipt.seq))
    findings = []
    for first, second in pairwise(ordered):
        a, b = first.signed.receipt, second.signed.receipt
        if a.channel_id == b.channel_id:
            what = f"receipts {a.seq} and {b.seq} of {a.channel_id[:10]}…"
            joined = a.after == b.before if b.seq == a.seq + 1 else None
            findings.append(ReceiptCheck(what, joined if b.seq > a.seq else False, _between(a.seq, b.seq)))
    return findings


def _between(first: int, second: int) -> str:
    missing = second - first - 1
    return "the second begins where the first ends" if missing == 0 else f"{missing} between them are not here"


def _proof_json(proof: Proof | None) -> Json | None:
    if proof is None:
        return None
    return {"epoch": proof.epoch, "root": proof.root, "steps": ["0x" + step.hex() for step in proof.steps]}


def _proof(raw: object, signed: SignedReceipt, chain_id: int) -> Proof | None:
    if raw is None:
        return None
    steps = raw.get("steps") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or type(raw.get("epoch")) is not int or not isinstance(steps, list):
        raise BadReceipt("a proof is an epoch, its root and steps")
    if not all(isinstance(step, str) and HEX.fullmatch(step) and len(step) == 2 + 2 * STEP_BYTES for step in steps):
        raise BadReceipt(f"a proof's steps are {STEP_BYTES} bytes in hex")
    leaf = signed.receipt.digest(chain_id)
    return Proof(raw["epoch"], str(raw.get("root")), leaf, tuple(bytes.fromhex(step[2:]) for step in steps))


CHAIN_START = "0x" + "00" * 32
"""The chain before the first receipt."""


def extend_chain(chain: str, receipt: Receipt) -> str:
    """The chain after a receipt."""
    # The struct hash, not the signed digest: the chain is about what happened, whatever ledger it settles on.
    return "0x" + keccak(bytes.fromhex(chain[2:]) + receipt.struct_hash()).hex()


@dataclass(frozen=True, slots=True)
class Proof:
    """Proof that a receipt is in an epoch: check it with `verify_proof(leaf, steps, root)`."""

    epoch: int
    root: str
    leaf: bytes
    steps: tuple[bytes, ...]
