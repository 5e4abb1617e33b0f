"""Runs what a mesh stands on: the Ray head and nodes, the embedded Valkey, the locked data folder.

May import protocol, catalogue, config and the floors below. Other modules are imported by name: some load Ray.
"""

from serving.cluster.ray_environment import HEAD_NODE

__all__ = ["HEAD_NODE"]
