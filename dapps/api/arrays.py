"""Converts numpy arrays to torch tensors and back, also for datatypes that only one of the two has.

Brain floats are converted by their bits; BYTES, which torch lacks, stays a numpy array of `bytes` objects. Imports
torch when a function is called.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dapps.api.types import DTYPES, Array


def to_torch(array: Array, device: str) -> Any:
    """The array as a tensor on the device; a copy of the array if its datatype is BYTES."""
    import torch

    # Copied, because an array from the wire may be read-only memory, and torch warns about that.
    copy = np.array(array)
    if array.dtype == DTYPES["BYTES"]:
        return copy
    if array.dtype == DTYPES["BF16"]:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(copy).to(device)


def from_torch(value: Any) -> Array:
    """The tensor as an array; an array is returned as it is."""
    import torch

    if isinstance(value, np.ndarray):
        return value
    if value.dtype == torch.bfloat16:
        return np.asarray(value.to("cpu").contiguous().view(torch.int16).numpy().view(DTYPES["BF16"]))
    return np.asarray(value.to("cpu").numpy())
