"""Builds the catalogue: a description of each DApp for its callers, as plain JSON.

Built once, when the mesh starts, from what each DApp declares and the card that lies beside its code. A card is an
author's text: here it is bounded, where it is shown it is escaped, and one that cannot be read stops nobody. Whether a
DApp can be called now is asked of its replicas, by `catalogue_routes.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import yaml

from channels.receipts import ShareRows
from dapps import DApp
from dapps.api import MAX_SAMPLES, RESEARCH_USE, Tensor
from dapps.packages import registry
from dapps.structure import check_yaml
from serving.catalogue import metadata

Json = dict[str, Any]
CARD_BYTES = 1 << 20
MAX_VALUES = 20_000
MAX_DEPTH = 12
REASON_CHARACTERS = 400
LIST_LEAVES_OUT = ("cards", "cardProblems", "samples")


def entry(name: str, dapp: DApp, shares: ShareRows, others: Sequence[DApp] = ()) -> Json:
    """All that a caller can know of one DApp; amounts are decimal strings of atomic units.

    Args:
        name: as it stands in the URL.
        dapp: without weights.
        shares: (carrier, owner's address, basis points).
        others: its other versions, which are called at `/versions/{version}`.
    """
    facts = metadata.metadata(name, dapp)
    readable, problems = cards(dapp)
    return {
        "name": name,
        "title": dapp.title or type(dapp).__name__,
        "version": dapp.version,
        "versions": [_version(version, version is dapp) for version in (dapp, *others)],
        "digests": _digests(dapp),
        "description": dapp.description,
        "intendedUse": "research",
        "notice": RESEARCH_USE,
        "shares": [{"carrier": carrier, "owner": owner, "basisPoints": points} for carrier, owner, points in shares],
        "inputs": _tensors(facts["inputs"], dapp.inputs),
        "outputs": _tensors(facts["outputs"], dapp.outputs),
        "diagnose": takes_cases(dapp),
        "calls": list(dapp.calls),
        "samples": _samples(name, dapp),
        "cards": readable,
        "cardProblems": problems,
    } | offer(dapp)


def offer(dapp: DApp) -> Json:
    """What of a row an operator may change while the DApp runs."""
    return {
        "price": _price(dapp),
        "digest": dapp.digest,
        "thresholds": dict(dapp.thresholds),
    }


def listed(row: Json) -> Json:
    """A row of the list: without what may be long."""
    return {key: value for key, value in row.items() if key not in LIST_LEAVES_OUT}


def unserved(
    served: Iterable[str], refused: Mapping[str, str] | None = None, trusted: Collection[str] | None = None
) -> list[Json]:
    """What is installed and cannot be called, and why: broken packages, and those the operator does not serve.

    Args:
        served: names of those that are.
        refused: of those that this mesh cannot serve, and why.
        trusted: packages of these alone are loaded to see whether they can be; None: all.
    """
    broken, served = registry.problems(trusted) | dict(refused or {}), set(served)
    rows = [{"name": name[:64], "state": "broken", "reason": _one_line(why)} for name, why in sorted(broken.items())]
    rest = sorted(set(registry.names()) - served - set(broken))
    why = "not among LEBEN_TRUSTED_DAPPS or LEBEN_DAPPS"
    return rows + [{"name": name, "state": "not_served", "reason": why} for name in rest]


def takes_cases(dapp: DApp) -> bool:
    """True if it has a `diagnose` route that can answer."""
    return (type(dapp).intake, type(dapp).prepare) != (DApp.intake, DApp.prepare)


def cards(dapp: DApp) -> tuple[list[Json], list[str]]:
    """The model cards beside a DApp's code, as plain values, and what is wrong with those that cannot be read."""
    readable, problems = [], []
    for path, content in dapp.card_files:
        try:
            readable.append(_card(content))
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            problems.append(f"{path} cannot be read: {_one_line(str(error))}")
    return readable, problems


def _card(content: bytes) -> Json:
    if len(content) > CARD_BYTES:
        raise ValueError(f"it is longer than {CARD_BYTES} bytes")
    text = content.decode()
    check_yaml(text, max_events=2 * MAX_VALUES, max_depth=MAX_DEPTH)
    card = _plain(yaml.safe_load(text), [MAX_VALUES], MAX_DEPTH)
    if not isinstance(card, dict):
        raise ValueError("it is no mapping")
    return card


def _plain(value: Any, left: list[int], depth: int) -> Any:
    """The value as JSON has it; a few lines of YAML with references may stand for any number of values."""
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise ValueError(f"it holds more than {MAX_VALUES} values, or deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        return {str(key): _plain(part, left, depth - 1) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(part, left, depth - 1) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # JSON readers lose digits of longer integers.
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 53):
        return value
    return str(value)


def _price(dapp: DApp) -> Json:
    price = dapp.price
    return {
        "perItem": str(price.per_item),
        "maximumItems": price.maximum_items,
        "perGpuSecond": str(price.per_gpu_second) if price.per_gpu_second else None,
        "maximum": str(price.max_price),
        "guideline": None if price.guideline is None else str(price.guideline),
    }


def _version(dapp: DApp, default: bool) -> Json:
    return {"version": dapp.version, "default": default, "digest": dapp.digest, "price": _price(dapp)}


def with_current_offer(row: Json, current: Json) -> Json:
    """A row with what its replica tells now, see `offer`."""
    now = {"digest": current["digest"], "price": current["price"]}
    return (
        row | current | {"versions": [version | now if version["default"] else version for version in row["versions"]]}
    )


def _digests(dapp: DApp) -> Json:
    manifest = dapp.manifest
    guidelines = [{"id": id_, "version": version, "digest": digest} for id_, version, digest in manifest.guidelines]
    return {"code": manifest.code, "weights": manifest.weights, "card": manifest.card, "guidelines": guidelines}


def _tensors(rows: list[Json], declared: Iterable[Tensor]) -> list[Json]:
    return [row | {"unit": t.unit, "optional": t.optional} for row, t in zip(rows, declared, strict=True)]


def _samples(name: str, dapp: DApp) -> list[str]:
    try:
        return dapp.sample_names()[:MAX_SAMPLES] or ["example"]
    except Exception as error:  # an author's code: without it nothing can be tried, and that is all
        logging.getLogger("leben.catalogue").warning("%s has no samples: %s", name, type(error).__name__)
        return []


def _one_line(text: str) -> str:
    return " ".join(text.split())[:REASON_CHARACTERS]
