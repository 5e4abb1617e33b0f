"""Runs a torch model on one device.

Imports only `dapps` and `serving.errors`, so that the process of an isolated DApp loads neither keys nor settings.
"""

from serving.device.optimizations import Forward
from serving.device.torch_runner import TorchRunner, checked

__all__ = ["Forward", "TorchRunner", "checked"]
