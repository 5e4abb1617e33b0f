"""Checks that receipts bind a guideline's digest, pay its author, and cost less where no model took part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from channels.protocol.signer import Signer
from channels.receipts import CARRIERS, Receipt, SignedReceipt, split_charge, without_model
from dapps import DApp, Price, Shares, Tensor
from dapps.knowledge import library
from serving.config.settings import Settings
from serving.mesh import owners
from tests.dapps.knowledge.small import changed

MESH = Signer(b"\7" * 32)


class Weigher(DApp):
    """Weighs a guideline."""

    version = "1.2.3"
    inputs = (Tensor("X", "FP32", [1]),)
    outputs = (Tensor("Y", "FP32", [1]),)
    price = Price(100, maximum_items=4, guideline=30)
    shares = Shares(knowledge=4_000, guideline=1_000, data=2_000, compute=2_500, operator=500)
    guidelines = ("small",)

    def load(self, device: str) -> None: ...

    def forward(self, **tensors: Any) -> dict[str, Any]:
        return {"Y": tensors["X"]}

    def example(self) -> dict[str, Any]:
        return {}


class Plain(Weigher):
    """The same without a guideline."""

    shares = Shares()
    guidelines = ()


@pytest.fixture
def guideline(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The file of the guideline `small`; a test changes it."""
    file = [changed()]
    monkeypatch.setattr(library, "raw", lambda name: file[-1])
    return file


def receipt(dapp: DApp) -> Receipt:
    parts = split_charge(100, (("knowledge", MESH.address, 10_000),))
    numbers = ("0x" + "11" * 32, "0x" + "22" * 32, 1, 1, 0, 100)
    return Receipt(
        *numbers,
        "weigher",
        dapp.release,
        "0x" + dapp.digest,
        "0x" + "33" * 32,
        "0x" + "44" * 32,
        1,
        100,
        7,
        tuple(parts),
    )


def test_one_threshold_changes_what_receipts_bind_and_old_receipts_still_verify(guideline: list[bytes]) -> None:
    before = Weigher()
    old = SignedReceipt.sign(receipt(before), 31337, MESH)
    guideline.append(changed(("score >= 40", "score >= 41")))
    after = Weigher()
    assert after.digest != before.digest and after.release != before.release
    new = SignedReceipt.sign(receipt(after), 31337, MESH)
    for offer in (old, new):
        assert SignedReceipt.from_json(offer.to_json()).verify(31337, MESH.address)
    forged = SignedReceipt(replace(old.receipt, model_digest=new.receipt.model_digest), old.signature)
    assert not forged.verify(31337, MESH.address)


def test_notation_changes_nothing(guideline: list[bytes]) -> None:
    before = Weigher()
    guideline.append(changed(("score >= 40", "(score >= 40.0)")))
    assert Weigher().digest == before.digest and Weigher().release == before.release


def test_a_receipt_names_version_and_digest_of_the_guideline(guideline: list[bytes]) -> None:
    digest = library.find("small").digest
    assert Weigher().release == f"1.2.3+small.1.0.0.{digest}"
    assert Plain().release == "1.2.3" and Plain().digest != Weigher().digest


def test_model_and_guideline_are_paid_apart(tmp_path: Path) -> None:
    rows = owners.shares(Settings(data=tmp_path), "weigher", Weigher())
    assert [row[0] for row in rows] == list(CARRIERS) and sum(row[2] for row in rows) == 10_000
    assert len({owner for _, owner, _ in rows[:3]}) == 3
    paid = {share.carrier: share.amount for share in split_charge(100, rows)}
    assert paid == {"knowledge": 40, "guideline": 10, "data": 20, "compute": 25, "operator": 5}
    alone = {share.carrier: share.amount for share in split_charge(30, without_model(rows))}
    assert sum(alone.values()) == 30 and set(alone) == {"guideline", "compute", "operator"} and alone["guideline"] == 21
    plain = owners.shares(Settings(data=tmp_path), "plain", Plain())
    assert "guideline" not in [row[0] for row in plain] and without_model(plain) == plain


def test_a_guideline_alone_is_cheaper() -> None:
    assert Weigher.price.guideline_only == 30 < Weigher.price.of(1) == 100
    assert Price(100).guideline_only == 100
    for wrong in (101, -1, 0.5):
        with pytest.raises(ValueError, match="price"):
            Price(100, guideline=wrong)  # type: ignore[arg-type]
