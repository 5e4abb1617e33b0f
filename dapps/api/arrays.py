"""numpy arrays to torch tensors and back, for the datatypes that torch and numpy do not share as well.

Brain floats travel by their bits; BYTES, for which torch has no type, stays a numpy array of `bytes` objects. Imports
torch only when it is called.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dapps.api.types import DTYPES, Array


def to_torch(array: Array, device: str) -> Any:
    """A tensor on the device, or a copy of the array itself if it is of BYTES."""
    import torch

    # Copied, because what came from the wire may be read-only memory that torch would warn about.
    copy = np.array(array)
    if array.dtype == DTYPES["BYTES"]:
        return copy
    if array.dtype == DTYPES["BF16"]:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(copy).to(device)


def from_torch(value: Any) -> Array:
    """The array of a tensor; an array comes back as it is."""
    import torch

    if isinstance(value, np.ndarray):
        return value
    if value.dtype == torch.bfloat16:
        return np.asarray(value.to("cpu").contiguous().view(torch.int16).numpy().view(DTYPES["BF16"]))
    return np.asarray(value.to("cpu").numpy())
