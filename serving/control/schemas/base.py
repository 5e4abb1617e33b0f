"""Declares what all schemas share, and the refusal."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Schema(BaseModel):
    """An answer: a field that is not declared is an error, which the tests find."""

    model_config = ConfigDict(extra="forbid")


class CamelSchema(Schema):
    """An answer whose fields are in camel case on the wire."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Body(BaseModel):
    """A request; fields that are not declared are ignored."""

    model_config = ConfigDict(strict=True)


class Error(BaseModel):
    """A refusal; nothing is charged."""

    error: str
    code: str | None = None


class Empty(Schema):
    """An answer without a value."""
