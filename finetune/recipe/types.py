"""What the keys of a recipe may hold: types with their ranges, in words for messages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "LOCAL_SUFFIXES",
    "PACKED_SUFFIXES",
    "Block",
    "Count",
    "Expect",
    "NotNegative",
    "Positive",
    "Share",
    "SplitName",
    "Switch",
    "Text",
    "is_local",
    "or_null",
]

LOCAL_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".conll", ".conllu", ".iob", ".bio")
PACKED_SUFFIXES = (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".tgz")
OTHER_SUFFIXES = (".txt", ".xls", ".xlsx", *PACKED_SUFFIXES)  # not read, or only as CoNLL; no Hub id ends so


@dataclass(frozen=True)
class Expect:
    """What a key expects, in the words of an error message."""

    words: str


Text = Annotated[str, Field(min_length=1), Expect("a text")]
Count = Annotated[int, Field(ge=1), Expect("a whole number of at least 1")]
Positive = Annotated[float, Field(gt=0), Expect("a number above 0")]
NotNegative = Annotated[float, Field(ge=0), Expect("a number of at least 0")]
Share = Annotated[float, Field(ge=0, lt=1), Expect("a number from 0 to below 1")]
Switch = Annotated[bool, Expect("true or false")]
SplitName = Annotated[str, Field(pattern=r"^(train|validation|test)$"), Expect("train, validation or test")]


def or_null(schema: dict[str, Any]) -> None:
    """Lets an editor accept null where the loader reads it as left out."""
    kept = {key: schema.pop(key) for key in list(schema) if key not in ("default", "description", "title")}
    schema["anyOf"] = [kept, {"type": "null"}]


class Block(BaseModel):
    """Named keys: no others, and no value of another type."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        defer_build=True,
    )


def is_local(path: str) -> bool:
    """Whether a path names files here; else it is a Hub id. A package:// path is neither, and not local."""
    if re.match(r"[a-z]+://", path):
        return False
    return path.startswith((".", "/")) or "*" in path or path.lower().endswith(("/", *LOCAL_SUFFIXES, *OTHER_SUFFIXES))
