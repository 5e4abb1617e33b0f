"""Owns the ledger, the receiver's keys and the settler; other rooms reach it through the client exported here.

May import cluster, telemetry and the floors below. `deployment`, `ledgers` and `spec` load SQLAlchemy: `serving.mesh`
imports them by name, so that replicas do not.
"""

from serving.treasury.client import deposit, recall, refund, settle

__all__ = ["deposit", "recall", "refund", "settle"]
