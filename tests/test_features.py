from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.features import FeatureWriter, Ragged, in_memory, read_features


def random_sequences(count: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 30_000, generator.integers(0, 9)).tolist() for _ in range(count)]


def test_sequences_come_back_as_they_were_given():
    sequences = random_sequences(50)
    ragged = Ragged.of(sequences)
    assert [ragged[i].tolist() for i in range(50)] == sequences
    assert ragged[-1].tolist() == sequences[-1]
    assert ragged.lengths.tolist() == [len(sequence) for sequence in sequences]
    assert ragged.values.dtype == np.int32
    assert ragged.offsets.dtype == np.int64
    with pytest.raises(IndexError):
        ragged[50]


def test_arrays_are_sequences_too():
    sequences = random_sequences(20)
    ragged = Ragged.of([np.array(sequence, dtype=np.int64) for sequence in sequences])
    assert [ragged[i].tolist() for i in range(20)] == sequences


@pytest.mark.parametrize("make", [list, np.array], ids=["list", "array"])
def test_a_number_that_does_not_fit_is_refused(make):
    with pytest.raises(OverflowError):
        Ragged.of([make([2**31])])


@pytest.mark.parametrize("index", [[0], [3, 1, 1, 40], list(range(50)), []], ids=["one", "repeat", "all", "none"])
def test_pad_fills_up_to_the_longest(index):
    sequences = random_sequences(50)
    padded = Ragged.of(sequences).pad(np.array(index, dtype=np.int64), -100)
    chosen = [sequences[i] for i in index]
    longest = max(map(len, chosen), default=0)
    assert padded.tolist() == [sequence + [-100] * (longest - len(sequence)) for sequence in chosen]
    assert padded.dtype == np.int64
    assert padded.shape == (len(index), longest)


def columns(first: int, count: int) -> dict:
    return {
        "input_ids": [list(range(i)) for i in range(first, first + count)],
        "labels": [np.arange(i) - 100 for i in range(first, first + count)],
        "row": np.arange(first, first + count),
        "truncated": np.arange(count) % 2 == 0,
        "gold": np.full((count, 3), first, dtype=np.uint8),
        "weight": [[0.5, float(first)]] * count,
    }


def write(folder: Path, blocks: list[dict]) -> None:
    writer = FeatureWriter(folder)
    for block in blocks:
        writer.append(block)
    writer.close()


def test_features_read_back_equal_what_was_written(tmp_path):
    write(tmp_path, [columns(0, 4), columns(4, 0), columns(4, 3)])
    features = read_features(tmp_path, cached=True)
    assert len(features) == 7
    assert features.cached
    assert set(features.sequences) == {"input_ids", "labels"}
    assert features.lengths.tolist() == list(range(7))
    assert features.sequences["labels"][6].tolist() == [-100, -99, -98, -97, -96, -95]
    assert features.scalars["row"].tolist() == list(range(7))
    assert features.scalars["truncated"].dtype == bool
    assert features.scalars["gold"].shape == (7, 3)
    assert features.scalars["gold"].dtype == np.uint8
    assert features.scalars["weight"][:, 1].tolist() == [0.0] * 4 + [4.0] * 3
    assert isinstance(features.scalars["gold"], np.memmap)


def test_features_in_memory_equal_those_from_disk(tmp_path):
    write(tmp_path, [columns(0, 5)])
    disk, memory = read_features(tmp_path, cached=False), in_memory(columns(0, 5))
    assert set(memory.sequences) == set(disk.sequences)
    for name, ragged in disk.sequences.items():
        assert ragged.values.tolist() == memory.sequences[name].values.tolist()
    for name, array in disk.scalars.items():
        assert array.tolist() == memory.scalars[name].tolist()


def test_all_sequences_may_be_empty(tmp_path):
    write(tmp_path, [{"input_ids": [[], []], "row": [0, 1], "truncated": [False, False]}])
    features = read_features(tmp_path, cached=True)
    assert features.lengths.tolist() == [0, 0]
    assert features.sequences["input_ids"].pad(np.array([0, 1]), 0).shape == (2, 0)


@pytest.mark.parametrize("name", ["input_ids.values", "input_ids.lengths", "gold.scalar"])
def test_a_file_that_lost_bytes_is_refused(tmp_path, name):
    write(tmp_path, [columns(0, 4)])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"{name}: expected {len(data)} bytes, found {len(data) - 1}"):
        read_features(tmp_path, cached=True)


def test_a_task_must_not_change_the_type_of_a_column(tmp_path):
    writer = FeatureWriter(tmp_path)
    writer.append({"input_ids": [[1]], "row": [0], "truncated": [False], "gold": [1.5]})
    with pytest.raises(AssertionError, match="gold"):
        writer.append({"input_ids": [[1]], "row": [1], "truncated": [False], "gold": [1]})
    writer.close()
