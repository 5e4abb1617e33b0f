"""Brings a mesh up and keeps it running: start, applications, rollout, owners and shutdown.

May import replica and the floors below.
"""

from serving.mesh.mesh import Mesh
from serving.mesh.owners import shares

__all__ = ["Mesh", "shares"]
