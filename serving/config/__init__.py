"""Reads what an operator sets: environment, mesh file and scale.

May import `channels`, `dapps` and serving.errors.
"""

from serving.config.mesh_file import Entry, MeshFile
from serving.config.scale import Scale
from serving.config.settings import LOOPBACK, Settings

__all__ = ["LOOPBACK", "Entry", "MeshFile", "Scale", "Settings"]
