"""Counts, traces and logs calls: statistics, metrics, tracing and the audit log; no label identifies a caller.

May import protocol, catalogue, config and the floors below. `metrics` loads Ray: import it by name.
"""

from serving.telemetry.audit_log import AuditLog, BrokenChain, Line, chains, read
from serving.telemetry.calls import CallRecord, Money
from serving.telemetry.gpus import Gpus
from serving.telemetry.statistics import LocalCounters, RedisCounters, Statistics
from serving.telemetry.usage import Execution

__all__ = [
    "AuditLog",
    "BrokenChain",
    "CallRecord",
    "Execution",
    "Gpus",
    "Line",
    "LocalCounters",
    "Money",
    "RedisCounters",
    "Statistics",
    "chains",
    "read",
]
