"""Describes a model: V2 metadata and Triton's model configuration, as JSON.

The gRPC server parses the same JSON into its messages, so that HTTP and gRPC always agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dapps import DApp
from dapps.api import Tensor

Json = dict[str, Any]
CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


def metadata(name: str, dapp: DApp) -> Json:
    """Model metadata; -1 stands for the batch and for every variable dimension."""

    def rows(tensors: Sequence[Tensor]) -> list[Json]:
        return [{"name": t.name, "datatype": t.datatype, "shape": [-1, *t.shape]} for t in tensors]

    return {
        "name": name,
        "versions": [dapp.version],
        "platform": "leben_dapp",
        "inputs": rows(dapp.inputs),
        "outputs": rows(dapp.outputs),
    }


def config(name: str, dapp: DApp, maximum_batch: int) -> Json:
    """Triton's `ModelConfig`; dimensions are those of one item, because the batch is counted apart."""

    def rows(tensors: Sequence[Tensor]) -> list[Json]:
        return [
            {
                "name": t.name,
                "data_type": CONFIG_TYPES.get(t.datatype, f"TYPE_{t.datatype}"),
                "dims": list(t.shape),
                **({"optional": True} if t.optional else {}),
            }
            for t in tensors
        ]

    most = min(maximum_batch, dapp.price.maximum_items)
    return {
        "name": name,
        "platform": "leben_dapp",
        "backend": "leben",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": most,
        "input": rows(dapp.inputs),
        "output": rows(dapp.outputs),
        "dynamic_batching": {"preferred_batch_size": [most], "max_queue_delay_microseconds": 0},
    }
