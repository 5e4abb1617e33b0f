"""Brings a mesh up and keeps it running: start, applications, rollout, owners and shutdown.

May import replica and the floors below. Exports nothing: most modules load Ray, which reads its environment when it is
imported; call `serving.cluster.ray_environment.prepare` before. `wheels`, `owners` and `selection` load none.
"""
