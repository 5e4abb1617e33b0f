"""Declares the answers of the Open Inference Protocol V2: server, models, statistics, repository."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from serving.control.schemas.base import Body, Schema


class ServerMetadata(Schema):
    """V2's server metadata."""

    name: str
    version: str
    extensions: list[str]


class Live(Schema):
    """Whether the mesh is alive."""

    live: bool


class Ready(Schema):
    """Whether paid calls can be taken."""

    ready: bool


class TensorMetadata(Schema):
    """A tensor: -1 stands for the batch and for every variable dimension."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Schema):
    """V2's model metadata."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Schema):
    """Whether the model can be called."""

    name: str
    ready: bool


class ConfigTensor(Schema):
    """A tensor in Triton's model configuration: the dimensions of one item."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool = False


class ModelConfig(Schema):
    """Triton's model configuration."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    dynamic_batching: dict[str, Any]


class Duration(Schema):
    """How often, and for how many nanoseconds in all."""

    count: int
    ns: int


class BatchStatistics(Schema):
    """Batches of one size."""

    batch_size: int
    compute_infer: Duration


class ModelStatistics(Schema):
    """Counters of one model since its store was made; `last_inference` is in milliseconds since 1970."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: dict[str, Duration]
    batch_stats: list[BatchStatistics]


class Statistics(Schema):
    """V2's statistics, of one model or of all that answer."""

    model_stats: list[ModelStatistics]


class OutputTensor(Schema):
    """One output, with its values in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferResponse(Schema):
    """V2's answer to an infer request."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None


class IndexRow(Schema):
    """A model of the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class IndexRequest(Body):
    """Which models the index lists."""

    ready: Annotated[bool, WithJsonSchema({"type": ["boolean", "null"]})] = Field(False, description="true or false")


class LoadRequest(Body):
    """How a model is loaded or unloaded."""

    parameters: Annotated[dict[str, Any], WithJsonSchema({"type": ["object", "null"]})] = Field(
        {}, description="a JSON object"
    )
