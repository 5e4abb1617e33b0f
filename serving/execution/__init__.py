"""Runs authorised calls: the batcher, unbatched and remote execution, and calls of one DApp to another.

May import cluster, telemetry and the floors below.
"""

from serving.execution.batcher import Batcher
from serving.execution.composition import Composition, Errand, Reach, Returned, bytes_of
from serving.execution.remote import Remote, TritonRunner
from serving.execution.remote_spending import carried
from serving.execution.unbatched import Solo

__all__ = [
    "Batcher",
    "Composition",
    "Errand",
    "Reach",
    "Remote",
    "Returned",
    "Solo",
    "TritonRunner",
    "bytes_of",
    "carried",
]
