"""What every part of a record is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

__all__ = ["Interval", "Part"]


class Part(BaseModel):
    """Named values: no others, checked when they are set."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Interval(Part):
    """A metric with its 95 % bootstrap interval; `low` and `high` are None where the metric is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None  # rows it is over, where these are a part of the split only; not in JSON where it is None

    @model_serializer(mode="wrap")
    def _without_n(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if name != "n" or value is not None}
