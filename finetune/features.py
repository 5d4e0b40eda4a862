"""Encoded rows: flat arrays with offsets, in memory or mapped from disk, and their way to and from files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["FeatureWriter", "Features", "Ragged", "in_memory", "read_features"]

INDEX = "features.json"


@dataclass(frozen=True, eq=False)
class Ragged:
    """n sequences of integers, one after the other.

    values: int32 (total,). offsets: int64 (n+1,); sequence i is values[offsets[i]:offsets[i+1]].
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        index %= len(self)
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Of every sequence, int32 (n,)."""
        return np.diff(self.offsets).astype(np.int32)

    def pad(self, index: np.ndarray, fill: int) -> np.ndarray:
        """The sequences at `index` (B,), filled up on the right to the longest of them: int64 (B, Lmax)."""
        index = np.asarray(index, dtype=np.int64)
        starts = self.offsets[index]
        lengths = self.offsets[index + 1] - starts
        longest = int(lengths.max(initial=0))
        padded = np.full((len(index), longest), fill, dtype=np.int64)
        # Place of every real token in `values`: the start of its sequence plus its number within it.
        before = np.cumsum(lengths) - lengths
        flat = np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)
        padded[np.arange(longest) < lengths[:, None]] = self.values[flat]
        return padded

    @staticmethod
    def of(sequences: Ragged | Sequence[Sequence[int] | np.ndarray]) -> Ragged:
        """From lists or arrays of integers. Raises OverflowError when one does not fit into int32."""
        if isinstance(sequences, Ragged):
            return sequences
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        total = int(lengths.sum())
        if sequences and isinstance(sequences[0], np.ndarray):
            flat: np.ndarray = np.concatenate(sequences)
            if total and (flat.min() < -(2**31) or flat.max() >= 2**31):
                raise OverflowError("a value of a sequence does not fit into int32")
            values = flat.astype(np.int32, copy=False)
        else:
            values = np.fromiter(chain.from_iterable(sequences), np.int32, total)
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@dataclass(frozen=True, eq=False)
class Features:
    """n features, the encoded windows of k <= n rows.

    sequences: `input_ids` always; `token_type_ids`, `labels` and others where the task gives them.
    scalars: arrays (n, ...); `row` int64 (index into the Rows) and `truncated` bool always.
    """

    sequences: dict[str, Ragged]
    scalars: dict[str, np.ndarray]
    cached: bool = False  # found on disk

    def __len__(self) -> int:
        return len(self.scalars["row"])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each feature, int32 (n,)."""
        return self.sequences["input_ids"].lengths


class FeatureWriter:
    """Appends blocks of features to flat files in a folder; memory holds one block.

    Each sequence name gives NAME.values (int32) and NAME.lengths (int32), each scalar name NAME.scalar, all in little
    endian; `close` writes the index that `read_features` needs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._scalars: dict[str, tuple[str, list[int]]] = {}  # name -> dtype, shape of one
        self._names: list[str] = []  # of sequences
        self._total = 0

    def append(self, columns: Mapping[str, Any]) -> None:
        """columns: name -> a Ragged or n lists (or arrays) of integers, a sequence; n numbers or vectors, a scalar.

        A vector of integers must come as an array (n, k), else it is taken for a sequence.
        """
        size = len(columns["row"])
        if not size:
            return
        for name, values in columns.items():
            assert len(values) == size, f"{name}: {len(values)} values for {size} features"
            if name in self._names or (name not in self._scalars and _is_sequence(name, values)):
                self._append_sequence(name, Ragged.of(values))
            else:
                self._append_scalar(name, np.asarray(values))
        self._total += size

    def _append_sequence(self, name: str, ragged: Ragged) -> None:
        if name not in self._names:
            assert self._total == 0, f"{name}: not given for the first block"
            self._names.append(name)
        self._file(f"{name}.values").write(ragged.values.astype("<i4", copy=False).tobytes())
        self._file(f"{name}.lengths").write(ragged.lengths.astype("<i4").tobytes())

    def _append_scalar(self, name: str, array: np.ndarray) -> None:
        assert array.dtype.kind in "biuf", f"{name}: expected numbers, found {array.dtype}"
        kind = (array.dtype.newbyteorder("<").str, list(array.shape[1:]))
        known = self._scalars.setdefault(name, kind)
        assert known == kind, f"{name}: {kind} after {known}; a task gives the same type and shape for every block"
        self._file(f"{name}.scalar").write(np.ascontiguousarray(array, dtype=kind[0]).tobytes())

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = open(self._folder / name, "wb")  # noqa: SIM115  (closed by `close`)
        return self._files[name]

    def close(self) -> None:
        """Finish the files. Raises OSError."""
        for file in self._files.values():
            file.close()
        index = {"total": self._total, "sequences": self._names, "scalars": self._scalars}
        (self._folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def in_memory(columns: Mapping[str, Any]) -> Features:
    """Features of a few rows, from the columns of one block as `FeatureWriter.append` takes them."""
    sequences = {name: Ragged.of(values) for name, values in columns.items() if _is_sequence(name, values)}
    scalars = {name: np.asarray(values) for name, values in columns.items() if name not in sequences}
    scalars["row"] = scalars["row"].astype(np.int64)
    return Features(sequences, scalars)


def _is_sequence(name: str, values: Any) -> bool:
    """Lists of integers are sequences; lists of floats, and arrays with two axes, are vectors."""
    if name == "input_ids" or isinstance(values, Ragged):
        return True
    if isinstance(values, np.ndarray):
        return False
    if not isinstance(values[0], (list, tuple, np.ndarray)):
        return False
    first = next((value for value in values if len(value)), (0,))
    return isinstance(first[0], (int, np.integer)) and not isinstance(first[0], bool)


def read_features(folder: Path, cached: bool) -> Features:
    """Map what a FeatureWriter wrote. Raises OSError or ValueError when files are missing or of a wrong size."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    total = index["total"]
    sequences = {}
    for name in index["sequences"]:
        lengths = _map(folder / f"{name}.lengths", "<i4", (total,))
        offsets = np.zeros(total + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        sequences[name] = Ragged(_map(folder / f"{name}.values", "<i4", (int(offsets[-1]),)), offsets)
    scalars = {
        name: _map(folder / f"{name}.scalar", dtype, (total, *shape))
        for name, (dtype, shape) in index["scalars"].items()
    }
    return Features(sequences, scalars, cached)


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if path.stat().st_size != expected:
        raise ValueError(f"{path.name}: expected {expected} bytes, found {path.stat().st_size}")
    if expected == 0:  # an empty file cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)
