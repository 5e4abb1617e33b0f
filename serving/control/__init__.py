"""Answers everything that is not a paid call: health, catalogue, accounts, JSON-RPC, pages and the gRPC server.

May import cluster, telemetry and the floors below. `serving.mesh` alone builds it, from `application`.
"""
