"""The data set of the quickstart: sizes, classes, hygiene of its bytes, and no leak from one split into another."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "recipes" / "quickstart"
SPLITS = ("train", "validation", "test")
Row = dict[str, str]


def read(folder: Path) -> dict[str, list[Row]]:
    return {split: read_file(folder / f"{split}.csv") for split in SPLITS}


def read_file(path: Path) -> list[Row]:
    text = path.read_bytes().decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def size_problems(splits: dict[str, list[Row]]) -> list[str]:
    classes = {split: {row["label"] for row in rows} for split, rows in splits.items()}
    problems = []
    if (total := sum(map(len, splits.values()))) < 600:
        problems.append(f"{total} rows, fewer than 600")
    if not 5 <= len(classes["train"]) <= 8:
        problems.append(f"{len(classes['train'])} classes")
    problems += [f"{split} has other classes than train" for split in SPLITS if classes[split] != classes["train"]]
    counts = Counter(row["label"] for row in splits["train"])
    return problems + [f"class {label}: {count} rows in train" for label, count in counts.items() if count < 40]


def byte_problems(data: bytes) -> list[str]:
    problems = []
    if data.startswith(b"\xef\xbb\xbf") or b"\r" in data or b"\0" in data:
        problems.append("byte order mark, carriage return or NUL")
    if not data.endswith(b"\n") or b"\n\n" in data:
        problems.append("no newline at the end, or an empty line")
    if not data.startswith(b"id,text,label\n"):
        problems.append("header")
    return problems


def text_problems(rows: list[Row]) -> list[str]:
    problems = []
    for row in rows:
        text = row["text"]
        if any(value != value.strip() or not value.isprintable() for value in row.values()):
            problems.append(f"{row['id']}: blanks at an end, or a control character")
        if not 3 <= len(text.split()) <= 60:
            problems.append(f"{row['id']}: {len(text.split())} words")
        if not re.fullmatch(r"q\d{4}", row["id"]):
            problems.append(f"{row['id']}: not an id")
    return problems


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def grams(text: str) -> frozenset[str]:
    joined = " ".join(words(text))
    return frozenset(joined[start : start + 5] for start in range(max(1, len(joined) - 4)))


def alike(left: frozenset[str], right: frozenset[str], limit: float) -> bool:
    shared = len(left & right)
    return shared >= limit * (len(left) + len(right) - shared)


def near_duplicates(rows: list[Row]) -> list[tuple[str, str]]:
    """Pairs with a Jaccard similarity >= 0.6 of their words or >= 0.5 of their character 5-grams."""
    sets = [(row["id"], frozenset(words(row["text"])), grams(row["text"])) for row in rows]
    pairs = itertools.combinations(sets, 2)
    return [(a[0], b[0]) for a, b in pairs if alike(a[1], b[1], 0.6) or alike(a[2], b[2], 0.5)]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return read(FOLDER)


def test_enough_rows_and_the_same_classes_in_every_split(splits: dict[str, list[Row]]) -> None:
    assert size_problems(splits) == []


@pytest.mark.parametrize("split", SPLITS)
def test_bytes_are_plain(split: str) -> None:
    assert byte_problems((FOLDER / f"{split}.csv").read_bytes()) == []


@pytest.mark.parametrize("split", SPLITS)
def test_texts_are_trimmed_and_short(split: str, splits: dict[str, list[Row]]) -> None:
    assert text_problems(splits[split]) == []


def test_ids_are_unique_over_all_splits(splits: dict[str, list[Row]]) -> None:
    counts = Counter(row["id"] for rows in splits.values() for row in rows)
    assert [key for key, count in counts.items() if count > 1] == []


def test_no_near_duplicates_inside_or_across_splits(splits: dict[str, list[Row]]) -> None:
    assert near_duplicates([row for rows in splits.values() for row in rows]) == []


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_shuffled(split: str, splits: dict[str, list[Row]]) -> None:
    labels = [row["label"] for row in splits[split]]
    longest = max(len(list(group)) for _, group in itertools.groupby(labels))
    assert longest <= 8


def test_train_exercises_the_csv_reader(splits: dict[str, list[Row]]) -> None:
    texts = [row["text"] for row in splits["train"]]
    for sign in (",", '"', "é", "€"):
        assert any(sign in text for text in texts), sign
    assert any(ord(character) > 0xFFFF for text in texts for character in text)


def test_planted_near_duplicates_are_found() -> None:
    rows = [
        {"id": "q1", "text": "Where is my parcel, please?"},
        {"id": "q2", "text": "where is MY parcel please"},
        {"id": "q3", "text": "Undelivered packages everywhere around."},
        {"id": "q4", "text": "Undelivered package everywhere around!"},
        {"id": "q5", "text": "How tall is the stool?"},
    ]
    assert near_duplicates(rows) == [("q1", "q2"), ("q3", "q4")]


def test_planted_faults_are_found(splits: dict[str, list[Row]]) -> None:
    few = {split: [row for row in rows if row["label"] == "delivery"] for split, rows in splits.items()}
    assert len(size_problems(few)) == 2
    other = {**splits, "test": [{**row, "label": "other"} for row in splits["test"]]}
    assert size_problems(other) == ["test has other classes than train"]
    rare = {**splits, "train": [*splits["train"], {"id": "q9999", "text": "one of a kind", "label": "rare"}]}
    assert "class rare: 1 rows in train" in size_problems(rare)
    texts = [" leading blank in here", "two words", "word " * 60 + "word", "a tab\tin the text", "fine as it stands"]
    rows = [{"id": f"q{number:04d}", "text": text, "label": "delivery"} for number, text in enumerate(texts)]
    assert [problem[:5] for problem in text_problems(rows)] == ["q0000", "q0001", "q0002", "q0003"]
    good = b"id,text,label\nq1,a b c,d\n"
    assert byte_problems(good) == []
    for bad in (b"\xef\xbb\xbf" + good, good.replace(b"\n", b"\r\n"), good[:-1], good + b"\n", good[3:]):
        assert byte_problems(bad)
