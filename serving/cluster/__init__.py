"""Runs what a mesh stands on: the Ray head and nodes, the embedded Valkey, the locked data folder.

May import protocol, catalogue, config and the floors below. Modules are imported by name: most load Ray.
"""

from serving.cluster.ray_head import HEAD_NODE

__all__ = ["HEAD_NODE"]
