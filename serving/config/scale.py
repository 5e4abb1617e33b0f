"""Describes how many replicas a DApp has, and when Serve adds or removes one.

Serve counts the calls that a replica has in flight, those that came past the proxy straight to it too, and keeps their
mean near `calls`. A replica that goes is drained first, so no paid call is lost to it.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_REPLICAS = 16
"""Of one DApp: a node has forty ports for the replicas of all."""
REPORT_S = 10.0
"""How often replicas tell what they have in flight; more often only where less is asked for."""


class Scale(BaseModel):
    """Replicas of one DApp.

    Attributes:
        least: replicas at any time.
        most: replicas under load; the same as `least` if it is left out.
        calls: calls in flight, running or waiting, that one replica is meant to have.
        up_s: seconds of too many calls before there is one more.
        down_s: seconds of too few before there is one less.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    least: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    most: int = Field(default=0, ge=0, le=MAX_REPLICAS)
    calls: int = Field(default=16, ge=1)
    up_s: float = Field(default=30.0, ge=1)
    down_s: float = Field(default=300.0, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if 0 < self.most < self.least:
            raise ValueError("`most` is at least `least`")
        return self

    def options(self) -> dict[str, Any]:
        """What Serve's deployment is started with."""
        if self.most <= self.least:
            return {"num_replicas": self.least}
        from ray.serve.config import AutoscalingConfig

        report_s = min(REPORT_S, self.up_s)
        with warnings.catch_warnings():
            # Serve means to name the interval elsewhere one day; until then this is where it is read.
            warnings.simplefilter("ignore", DeprecationWarning)
            autoscaling = AutoscalingConfig(
                min_replicas=self.least,
                max_replicas=self.most,
                target_ongoing_requests=self.calls,
                upscale_delay_s=self.up_s,
                downscale_delay_s=self.down_s,
                metrics_interval_s=report_s,
                look_back_period_s=3 * report_s,
            )
        return {"autoscaling_config": autoscaling}
