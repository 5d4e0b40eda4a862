from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from finetune.rows import Rows, from_arrow, to_arrow


def make(count: int, batch: int = 300) -> Rows:
    table = pa.table(
        {"text": [f"text {i}" for i in range(count)], "label": list(range(count)), "id": [str(i) for i in range(count)]}
    )
    table = pa.Table.from_batches(table.to_batches(max_chunksize=batch))
    places = pa.table(
        {"file": pa.array([i % 2 for i in range(count)], pa.int32()), "line": [i + 2 for i in range(count)]}
    )
    return Rows("train", table, {}, "a.csv, b.csv", "f" * 64, places=places, files=("a.csv, line", "b.csv, line"))


def test_batches_cover_all_rows_in_order():
    rows = make(7)
    batches = list(rows.batches(3))
    assert [len(batch["id"]) for batch in batches] == [3, 3, 1]
    assert [text for batch in batches for text in batch["text"]] == rows.column("text")
    assert set(batches[0]) == {"text", "label", "id"}


@pytest.mark.parametrize(
    "index",
    [
        [],
        [5],
        [3, 3, 0],
        list(range(100, 2000)),
        list(range(0, 4000, 2)),  # ascending, more runs than are kept as views
        list(range(3999, -1, -1)),
        np.random.default_rng(0).permutation(4000),
    ],
    ids=["none", "one", "repeat", "run", "every second", "reverse", "shuffled"],
)
def test_take_gives_the_rows_of_the_index_and_their_places(index):
    rows = make(4000)
    index = np.asarray(index, dtype=np.int64)
    taken = rows.take(index)
    assert taken.column("label") == index.tolist()
    assert taken.column("text") == [f"text {i}" for i in index]
    assert [taken.where(i) for i in range(min(5, len(index)))] == [rows.where(int(i)) for i in index[:5]]


def test_take_of_a_run_copies_nothing():
    rows = make(4000, batch=4000)
    taken = rows.take(np.arange(1000, 3000))
    address = taken.table.column("text").chunk(0).buffers()[2].address
    assert address == rows.table.column("text").chunk(0).buffers()[2].address


def test_take_of_few_rows_does_not_hold_all_texts():
    texts = ["x" * 10_000 for _ in range(6000)]
    table = pa.Table.from_batches(pa.table({"text": texts, "id": texts}).to_batches(max_chunksize=100))
    rows = Rows("train", table, {}, "a", "f")
    del texts, table
    before = pa.total_allocated_bytes()
    taken = rows.take(np.arange(0, 6000, 3)[::-1])
    own = pa.total_allocated_bytes() - before
    assert own < 1.5 * taken.table.nbytes


def test_every_selection_has_a_fingerprint_of_its_own():
    rows = make(10)
    one, same, other = rows.take(np.arange(5)), rows.take(np.arange(5)), rows.take(np.arange(1, 6))
    assert one.fingerprint == same.fingerprint
    assert len({rows.fingerprint, one.fingerprint, other.fingerprint}) == 3
    assert rows.take(np.arange(10)) is rows


def test_where_names_the_file_and_line_of_a_row():
    rows = make(4)
    assert rows.where(0) == "a.csv, line 2"
    assert rows.where(1) == "b.csv, line 3"


def test_where_without_places_counts_rows():
    rows = Rows("test", pa.table({"id": ["0"]}), {}, "user/set test", "f")
    assert rows.where(0) == "user/set test, row 0"


@pytest.mark.parametrize("index", [[], [3, 0, 3], np.arange(9, dtype=np.int32)[::2]], ids=["none", "list", "strided"])
def test_numbers_to_arrow_and_back(index):
    arrow = to_arrow(index)
    assert (arrow.type, arrow.to_pylist()) == (pa.int64(), list(index))
    assert from_arrow(arrow.slice(1)).tolist() == list(index)[1:]


def test_numbers_of_several_chunks():
    chunks = pa.chunked_array([pa.array([1, 2], pa.int32()), pa.array([], pa.int32()), pa.array([3], pa.int32())])
    assert from_arrow(chunks).tolist() == [1, 2, 3]
    empty = from_arrow(pa.chunked_array([], pa.int32()))
    assert (empty.dtype, len(empty)) == (np.int32, 0)
