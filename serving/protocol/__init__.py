"""Speaks the Open Inference Protocol: bodies, tensors and refusals over REST and gRPC, and the `diagnose` route.

May import `channels`, `dapps`, device, tensors and errors.
"""

from serving.protocol.bodies import Room, small_body
from serving.protocol.diagnose import picture, read_case, read_view, render
from serving.protocol.exchange import CALL_TIMEOUT_S, Asked, Reply, Work
from serving.protocol.offload import LIGHTER, off_loop
from serving.protocol.refusals import RETRY_AFTER_S, STATUS, describe
from serving.protocol.responses import cors, refused

__all__ = [
    "CALL_TIMEOUT_S",
    "LIGHTER",
    "RETRY_AFTER_S",
    "STATUS",
    "Asked",
    "Reply",
    "Room",
    "Work",
    "cors",
    "describe",
    "off_loop",
    "picture",
    "read_case",
    "read_view",
    "refused",
    "render",
    "small_body",
]
