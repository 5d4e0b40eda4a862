"""What every part of a record is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Interval", "Part"]


class Part(BaseModel):
    """Named values: no others, checked when they are set."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Interval(Part):
    """A metric with its 95 % bootstrap interval; `low` and `high` are None where the metric is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
