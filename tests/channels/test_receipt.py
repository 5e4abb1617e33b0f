"""Compares receipts' digests with EIP-712, their JSON with itself, and Merkle proofs with the leaves they prove."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_hash.auto import keccak
from eth_utils import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import ChannelError
from channels.protocol.digests import SETTLEMENT
from channels.protocol.signer import Signer
from channels.receipts import BadReceipt, Part, Receipt, Share, SignedReceipt
from channels.receipts.merkle import merkle_proof, merkle_root, verify_proof

TYPES = {
    "Receipt": [
        ("bytes32", "callId"), ("bytes32", "channelId"), ("uint64", "incarnation"), ("uint64", "seq"),
        ("uint128", "before"), ("uint128", "after"), ("string", "dapp"), ("string", "version"),
        ("bytes32", "modelDigest"), ("bytes32", "requestDigest"), ("bytes32", "resultDigest"), ("uint64", "units"),
        ("uint128", "amount"), ("uint64", "atMs"), ("Share[]", "shares"),
    ],
    "Share": [("string", "carrier"), ("address", "owner"), ("uint128", "amount")],
}  # fmt: skip
PART = [
    ("uint64", "depth"), ("string", "dapp"), ("string", "version"), ("bytes32", "modelDigest"),
    ("bytes32", "requestDigest"), ("bytes32", "resultDigest"), ("uint64", "units"), ("uint128", "amount"),
    ("Share[]", "shares"),
]  # fmt: skip
COMPOSED = {"Receipt": [*TYPES["Receipt"], ("Part[]", "parts")], "Part": PART, "Share": TYPES["Share"]}


def typed(types):
    return {name: [{"type": kind, "name": field} for kind, field in parts] for name, parts in types.items()}


digests = st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex())
numbers = st.integers(0, 2**63 - 1)
shares = st.lists(
    st.builds(
        Share, st.text(max_size=9), st.binary(min_size=20, max_size=20).map(to_checksum_address), st.integers(0, 2**50)
    ),
    max_size=4,
).map(tuple)


@st.composite
def trees(draw, depth=1):
    """Parts that add up, in depth-first order."""
    parts = []
    for _ in range(draw(st.integers(0, 2 if depth == 1 else 1)) if depth < 3 else 0):
        own, below = draw(shares), draw(trees(depth + 1))
        amount = sum(share.amount for share in own) + sum(part.amount for part in below if part.depth == depth + 1)
        text, digest = draw(st.text(max_size=9)), draw(digests)
        parts += [Part(depth, text, "1", digest, digest[:-1] + "0", digest, draw(numbers), amount, own), *below]
    return parts


@st.composite
def receipts(draw):
    parts, below = draw(shares), tuple(draw(trees()))
    amount = sum(part.amount for part in parts) + sum(part.amount for part in below if part.depth == 1)
    before = draw(st.integers(0, 2**100))
    return Receipt(
        draw(digests), draw(digests), draw(numbers), draw(numbers), before, before + amount, draw(st.text(max_size=9)),
        draw(st.text(max_size=9)), draw(digests), draw(digests), draw(digests), draw(numbers), amount, draw(numbers),
        parts, below,
    )  # fmt: skip


def simple() -> Receipt:
    owner = Signer(b"\x09" * 32).address
    return Receipt(
        "0x" + "11" * 32, "0x" + "22" * 32, 1, 1, 0, 5, "chdr", "1", "0x" + "33" * 32, "0x" + "44" * 32,
        "0x" + "55" * 32, 1, 5, 7, (Share("compute", owner, 5),),
    )  # fmt: skip


def plain(rows):
    return [row | {"amount": int(row["amount"])} for row in rows]


OWNED = Share("knowledge", Signer(b"\x08" * 32).address, 2)


def composed() -> Receipt:
    """Of 10, 5 are its own owner's and 5 a part's, of which 2 are that part's owner's and 3 the part's below it."""
    digest = "0x" + "66" * 32
    outer = Part(1, "lungs", "2", digest, digest, digest, 1, 5, (OWNED,))
    inner = replace(outer, depth=2, dapp="heart", amount=3, shares=(replace(OWNED, amount=3),))
    return replace(simple(), after=10, amount=10, parts=(outer, inner))


def test_a_receipt_says_whom_its_parts_pay():
    assert [(owed.dapp, owed.version, owed.share.amount) for owed in composed().owed] == [
        ("chdr", "1", 5),
        ("lungs", "2", 2),
        ("heart", "2", 3),
    ]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda outer, inner: (inner,), id="what belongs to nothing"),
        pytest.param(lambda outer, inner: (replace(outer, amount=6), inner), id="more than below it"),
        pytest.param(lambda outer, inner: (outer,), id="without what it paid for"),
        pytest.param(lambda outer, inner: (outer, replace(inner, depth=1)), id="paid twice"),
        pytest.param(lambda outer, inner: (outer, replace(inner, depth=3)), id="a level left out"),
        pytest.param(lambda outer, inner: (replace(outer, amount=-5), inner), id="negative"),
        pytest.param(lambda outer, inner: (outer, inner, *[replace(outer, amount=0, shares=())] * 3), id="too many"),
        pytest.param(lambda outer, inner: (outer, replace(inner, model_digest="0x")), id="no digest"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(change):
    whole = composed()
    with pytest.raises(BadReceipt):
        replace(whole, parts=change(*whole.parts))


@pytest.mark.parametrize("name", sorted(composed().parts[0].to_json()))
def test_a_part_lacks_no_field(name):
    raw = composed().to_json()
    first, second = raw["parts"]
    for broken in ({**first, name: 1.5}, {key: value for key, value in first.items() if key != name}):
        with pytest.raises(ChannelError):
            Receipt.from_json(raw | {"parts": [broken, second]})
    with pytest.raises(BadReceipt):
        Receipt.from_json(raw | {"parts": first})


@given(receipts(), st.integers(1, 2**52))
def test_digest_is_that_of_eip_712(receipt, chain_id):
    public = receipt.to_json()
    message = {name: public[name] for _, name in TYPES["Receipt"]}
    message |= {name: int(message[name]) for name in ("before", "after", "amount")}
    message["shares"] = plain(message["shares"])
    if receipt.parts:
        message["parts"] = [part | {"shares": plain(part["shares"])} for part in plain(public["parts"])]
    domain = {"name": "Leben Mesh Receipt", "version": "1", "chainId": chain_id, "verifyingContract": SETTLEMENT}
    encoded = encode_typed_data(domain, typed(COMPOSED if receipt.parts else TYPES), message)
    assert receipt.digest(chain_id) == keccak(b"\x19" + encoded.version + encoded.header + encoded.body)
    assert receipt.struct_hash() == encoded.body


@given(receipts())
def test_json_round_trip(receipt):
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert receipt.to_json()["receipt"] == receipt.call_id


def test_signature_binds_every_field_the_chain_and_the_signer():
    mesh, receipt = Signer.generate(), simple()
    signed = SignedReceipt.from_json(SignedReceipt.sign(receipt, 7, mesh).to_json())
    assert signed.verify(7, mesh.address)
    assert not signed.verify(8, mesh.address)
    assert not signed.verify(7, Signer.generate().address)
    assert Account._recover_hash(receipt.digest(7), signature=signed.signature) == mesh.address
    other = {
        "before": {"before": 1, "after": 6}, "after": {"before": 1, "after": 6},
        "amount": {"amount": 4, "after": 4, "shares": (replace(receipt.shares[0], amount=4),)},
        "shares": {"shares": (replace(receipt.shares[0], carrier="data"),)},
        "parts": {"after": 7, "amount": 7, "parts": (replace(composed().parts[0], amount=2, shares=(OWNED,)),)},
    }  # fmt: skip
    for field in fields(Receipt):
        value = getattr(receipt, field.name)
        plain = {field.name: value + 1 if isinstance(value, int) else str(value).replace("1", "2").replace("c", "d")}
        if field.name.endswith("digest") or field.name.endswith("_id"):
            plain = {field.name: "0x" + "66" * 32}
        changed = replace(receipt, **other.get(field.name, plain))
        assert not replace(signed, receipt=changed).verify(7, mesh.address), field.name


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"amount": 6}, id="amount"),
        pytest.param({"after": 4}, id="after"),
        pytest.param({"shares": ()}, id="shares"),
        pytest.param({"call_id": "0x" + "AA" * 32}, id="upper-case"),
        pytest.param({"seq": -1}, id="negative"),
        pytest.param({"units": 2**64}, id="count-too-large"),
        pytest.param({"before": 2**128, "after": 2**128 + 5}, id="amount-too-large"),
        pytest.param({"after": -1, "before": 0, "amount": -1, "shares": ()}, id="negative-amount"),
        pytest.param({"shares": (Share("a", "0x" + "ab" * 20, 5),)}, id="address-not-checksummed"),
    ],
)
def test_a_receipt_that_does_not_add_up_cannot_be_made(change):
    with pytest.raises(BadReceipt):
        replace(simple(), **change)


@pytest.mark.parametrize("name", sorted(set(simple().to_json()) - {"receipt"}))
def test_from_json_refuses_a_missing_or_mistyped_field(name):
    raw = simple().to_json()
    for broken in ({**raw, name: 1.5}, {key: value for key, value in raw.items() if key != name}):
        with pytest.raises(ChannelError):
            Receipt.from_json(broken)


leaves = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=33)


@given(leaves, st.data())
def test_every_leaf_is_proved_and_no_other_is(items, data):
    index = data.draw(st.integers(0, len(items) - 1))
    root, proof = merkle_root(items), merkle_proof(items, index)
    assert verify_proof(items[index], proof, root)
    stranger = data.draw(st.binary(min_size=32, max_size=32).filter(lambda leaf: leaf not in items))
    assert not verify_proof(stranger, proof, root)
    if proof:
        assert not verify_proof(items[index], proof[:-1], root)
        side = bytes([proof[0][0] ^ 1]) + proof[0][1:]
        same = proof[0][1:] == keccak(b"\x00" + items[index])
        assert same or not verify_proof(items[index], (side, *proof[1:]), root)


@given(leaves, leaves)
def test_different_lists_have_different_roots(first, second):
    assert (merkle_root(first) == merkle_root(second)) == (first == second)
    assert merkle_root([*first, first[-1]]) != merkle_root(first)


def test_an_inner_node_is_no_leaf():
    items = [bytes([number]) * 32 for number in range(4)]
    left = keccak(b"\x00" + items[0]) + keccak(b"\x00" + items[1])
    proof = merkle_proof(items, 0)
    assert not verify_proof(left, proof[1:], merkle_root(items))
    assert not verify_proof(keccak(b"\x01" + left), proof[1:], merkle_root(items))


def test_an_empty_tree_and_a_malformed_proof():
    with pytest.raises(ValueError, match="at least one"):
        merkle_root([])
    with pytest.raises(ValueError, match="no such leaf"):
        merkle_proof([b"a" * 32], 1)
    assert not verify_proof(b"a" * 32, [b"\x00"], merkle_root([b"a" * 32]))
    assert not verify_proof(b"a" * 32, [b"\x02" + b"b" * 32], merkle_root([b"a" * 32]))
