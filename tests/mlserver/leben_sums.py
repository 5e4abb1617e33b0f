"""A model for MLServer, written as its documentation says: sum and difference, and a slow one."""

import asyncio

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Sums(MLModel):
    """Sum and difference of two arrays; waits for a minute where the first number is 99."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        first, second = (NumpyCodec.decode_input(tensor) for tensor in payload.inputs)
        if first.flat[0] == 99:
            await asyncio.sleep(60)
        outputs = [
            NumpyCodec.encode_output("OUTPUT0", first + second),
            NumpyCodec.encode_output("OUTPUT1", first - second),
        ]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)
