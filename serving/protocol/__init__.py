"""Speaks the Open Inference Protocol: bodies, tensors and refusals over REST and gRPC, and the `diagnose` route.

May import `channels`, `dapps`, device, tensors and errors.
"""

from serving.protocol.bodies import BodyBudget, small_body
from serving.protocol.diagnose import picture, read_case, read_view, render
from serving.protocol.exchange import CALL_TIMEOUT_S, Request, Response, Result
from serving.protocol.offload import LIGHTER, run_in_thread
from serving.protocol.refusals import RETRY_AFTER_S, STATUS, describe
from serving.protocol.responses import cors, refused

__all__ = [
    "CALL_TIMEOUT_S",
    "LIGHTER",
    "RETRY_AFTER_S",
    "STATUS",
    "BodyBudget",
    "Request",
    "Response",
    "Result",
    "cors",
    "describe",
    "picture",
    "read_case",
    "read_view",
    "refused",
    "render",
    "run_in_thread",
    "small_body",
]
