"""Speaks the Open Inference Protocol: bodies, tensors and refusals over REST and gRPC, and the `diagnose` route.

May import `channels`, `dapps`, device, tensors and errors.
"""

from serving.protocol.bodies import BodyBudget, small_body
from serving.protocol.diagnose import picture, read_case, read_view, render
from serving.protocol.exchange import CALL_TIMEOUT_S, Request, Response, Result
from serving.protocol.offload import BINARY_DISCOUNT, run_in_thread
from serving.protocol.refusals import RETRY_AFTER_S, STATUS, Refusal, describe
from serving.protocol.responses import JSON, cors, json_response, refusal, refused

__all__ = [
    "BINARY_DISCOUNT",
    "CALL_TIMEOUT_S",
    "JSON",
    "RETRY_AFTER_S",
    "STATUS",
    "BodyBudget",
    "Refusal",
    "Request",
    "Response",
    "Result",
    "cors",
    "describe",
    "json_response",
    "picture",
    "read_case",
    "read_view",
    "refusal",
    "refused",
    "render",
    "run_in_thread",
    "small_body",
]
