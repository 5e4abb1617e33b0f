"""What gives back what it is given, on KServe's Python server, as its documentation shows a model."""

import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Echo(Model):  # type: ignore[misc] # in an environment of its own
    """One call, one step."""

    def __init__(self) -> None:
        super().__init__("echo")
        self.ready = True

    async def predict(self, payload: InferRequest, *_: object) -> InferResponse:
        """What came."""
        x = payload.inputs[0].as_numpy()
        output = InferOutput("Y", list(x.shape), "UINT8")
        output.set_data_from_numpy(x, binary_data=False)
        return InferResponse(payload.id or "", "echo", [output])


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[1]), workers=1, enable_grpc=False, enable_latency_logging=False).start([Echo()])
