"""`finetune compare`: the same rows or none, values of the metric libraries, tests that keep their level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from finetune import metrics
from finetune.bootstrap import PairedDifference
from finetune.comparison import _over_seeds, compare
from finetune.errors import DataError, RecipeError
from finetune.record import Interval, ModelFacts, RunRecord, SplitFacts, SplitResults

Row = tuple[Any, Any, Any]


def write(path: Path, rows: list[Row]) -> str:
    lines = [json.dumps({"id": name, "gold": gold, "prediction": said}) for name, gold, said in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def labelled(path: Path, gold: list[Any], predicted: list[Any]) -> str:
    return write(path, [(f"r{number}", *pair) for number, pair in enumerate(zip(gold, predicted, strict=True))])


def guesses(gold: np.ndarray, share: float, labels: int, rng: np.random.Generator) -> np.ndarray:
    """Right for about `share` of the rows."""
    return np.where(rng.random(len(gold)) < share, gold, (gold + rng.integers(1, labels, len(gold))) % labels)


def run_folder(folder: Path, predicted: list[str], gold: list[str], *, best: str = "f1", text: str = "x") -> str:
    (folder / "predictions").mkdir(parents=True)
    labelled(folder / "predictions" / "test.jsonl", gold, predicted)
    record = RunRecord(model=ModelFacts(checkpoint="c", problem="single", labels=["a", "b", "c", "never"]))
    record.data = {"test": SplitFacts(rows=len(gold), fingerprint=text)}
    found = metrics.sequence_single(["accuracy", "f1"], np.arange(2), np.arange(2), num_labels=4)
    record.results = {"test": SplitResults(n=len(gold), metrics=found)}
    record.write(folder / "run.json")
    return str(folder)


# ---------------------------------------- labels


def test_values_are_those_of_scikit_learn_and_the_test_is_mcnemars(tmp_path):
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, 300)
    a, b = guesses(gold, 0.9, 3, rng), guesses(gold, 0.7, 3, rng)
    sides = [labelled(tmp_path / f"{name}.jsonl", gold.tolist(), said.tolist()) for name, said in (("a", a), ("b", b))]
    found = compare(*sides)
    assert (found.kind, found.n) == ("single", 300)
    by_name = {one.metric: one for one in found.metrics}
    for name, measure in (
        ("accuracy", sk.accuracy_score),
        ("f1", lambda x, y: sk.f1_score(x, y, average="macro")),
        ("precision", lambda x, y: sk.precision_score(x, y, average="macro")),
        ("matthews", sk.matthews_corrcoef),
    ):
        assert by_name[name].a == pytest.approx(measure(gold, a))
        assert by_name[name].difference.value == pytest.approx(measure(gold, a) - measure(gold, b))
        assert by_name[name].difference.low < by_name[name].difference.value < by_name[name].difference.high
    assert by_name["accuracy"].test == "McNemar"
    assert by_name["f1"].test == "randomisation"
    assert found.verdict.startswith("A is better by 0.")
    assert "on these 300 rows" in found.verdict
    only_a = [f"r{row}" for row in np.flatnonzero((a == gold) & (b != gold))]
    assert found.changed.better_a == only_a
    assert len(found.changed.better_b) == int(((b == gold) & (a != gold)).sum())


def test_a_label_that_only_one_model_never_predicts_counts_as_zero_for_it(tmp_path):
    gold = ["a", "b"] * 20 + ["c"]
    a, b = gold.copy(), [*gold[:-1], "a"]
    found = compare(
        labelled(tmp_path / "a.jsonl", gold, a), labelled(tmp_path / "b.jsonl", gold, b), metrics=["precision"]
    )
    [one] = found.metrics
    assert one.b == pytest.approx(sk.precision_score(gold, b, average="macro", zero_division=0))
    assert one.difference.value == pytest.approx(one.a - one.b)


def test_equal_models_are_not_distinguishable(tmp_path):
    gold = ["pos", "neg"] * 30
    said = ["pos"] * 60
    found = compare(labelled(tmp_path / "a.jsonl", gold, said), labelled(tmp_path / "b.jsonl", gold, said))
    assert found.verdict.startswith("Not distinguishable on these 60 rows: accuracy")
    assert all(one.p == 1.0 and one.difference.value == 0 for one in found.metrics)
    assert found.changed.better_a == found.changed.better_b == []


def test_one_point_over_400_rows_is_called_a_difference_in_5_of_100_cases(tmp_path):
    rng = np.random.default_rng(1)
    called = 0
    for _ in range(60):
        gold = rng.integers(0, 2, 400)
        sides = [guesses(gold, 0.8, 2, rng).tolist() for _ in range(2)]
        paths = [labelled(tmp_path / f"{side}.jsonl", gold.tolist(), said) for side, said in enumerate(sides)]
        called += not compare(*paths, metrics=["accuracy"]).verdict.startswith("Not")
    assert called <= 8  # P(more | level 5 %) = 0.3 %


def test_holms_p_is_for_all_metrics_together(tmp_path):
    rng = np.random.default_rng(2)
    gold = rng.integers(0, 3, 200)
    paths = [
        labelled(tmp_path / f"{n}.jsonl", gold.tolist(), guesses(gold, s, 3, rng).tolist())
        for n, s in enumerate((0.8, 0.7))
    ]
    found = compare(*paths)
    ordered = sorted(found.metrics, key=lambda one: one.p)
    assert ordered[0].holm_p == pytest.approx(min(1, 5 * ordered[0].p))
    assert all(one.holm_p >= one.p for one in ordered)
    assert [one.holm_p for one in ordered] == sorted(one.holm_p for one in ordered)
    assert any("5 metrics were tested" in note for note in found.notes)


# ---------------------------------------- other kinds


def test_entities_are_compared_by_entity_f1(tmp_path):
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]] * 20
    b = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC"]] * 20
    found = compare(labelled(tmp_path / "a.jsonl", gold, gold), labelled(tmp_path / "b.jsonl", gold, b))
    assert found.kind == "entities"
    f1 = next(one for one in found.metrics if one.metric == "f1")
    assert f1.b == pytest.approx(metrics.entities(["f1"], gold, b)["f1"].value)
    assert f1.test == "randomisation"
    assert found.verdict.startswith("A is better")


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        (["I-PER", "I-PER", "O", "I-LOC"], ["I-PER", "I-PER", "O", "O"]),  # IO, or an I- that continues nothing
        (["B-PER", "E-PER", "O", "S-LOC"], ["B-PER", "E-PER", "O", "O"]),
    ],
)
def test_tags_of_another_framework_are_read_as_evaluation_reads_them(tmp_path, gold, said):
    ours = labelled(tmp_path / "ours.jsonl", [["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O", "O"]])
    found = compare(ours, labelled(tmp_path / "theirs.jsonl", [gold], [said]))
    assert found.kind == "entities"
    assert {one.metric: (one.a, one.b) for one in found.metrics}["f1"] == pytest.approx((2 / 3, 2 / 3))


@pytest.mark.parametrize(
    ("kind", "gold", "a", "b"),
    [
        ("tags", [["DET", "NOUN", "DET"]] * 8, [["DET", "NOUN", "DET"]] * 8, [["DET", "DET", "DET"]] * 8),
        ("multi", [["x", "y"], ["x"], []] * 4, [["y", "x"], ["x"], []] * 4, [["x"], ["x"], ["y"]] * 4),
        ("answers", [["the cat", "cat"], []] * 6, ["Cat", ""] * 6, ["dog", "dog"] * 6),
        ("texts", [f"sentence number {n} here" for n in range(9)], ["sentence number 3 here"] * 9, ["what"] * 9),
        ("regression", [0.5, 1.5, 2.0] * 5, [0.6, 1.2, 2.5] * 5, [2.0, 1.0, 0.5] * 5),
    ],
)
def test_kind_and_values_of_each_kind(tmp_path, kind, gold, a, b):
    found = compare(labelled(tmp_path / "a.jsonl", gold, a), labelled(tmp_path / "b.jsonl", gold, b))
    assert found.kind == kind
    measure = {
        "tags": lambda names, said: metrics.tags(names, gold, said, ["DET", "NOUN"]),
        "multi": lambda names, said: metrics.sequence_multi(names, flags(gold), flags(said)),
        "answers": lambda names, said: metrics.answers(names, gold, said),
        "texts": lambda names, said: metrics.texts(names, gold, said),
        "regression": lambda names, said: metrics.regression(names, np.array(gold), np.array(said)),
    }[kind]
    names = [one.metric for one in found.metrics]
    for side, said in (("a", a), ("b", b)):
        values = measure(names, said)
        for one in found.metrics:
            assert getattr(one, side) == pytest.approx(values[one.metric].value), one.metric
    assert found.changed.better_b == []
    assert found.changed.better_a


def flags(rows: list[list[str]]) -> np.ndarray:
    return np.array([[label in row for label in ("x", "y")] for row in rows])


def test_a_smaller_error_is_better(tmp_path):
    rng = np.random.default_rng(3)
    gold = rng.normal(size=80)
    paths = [
        labelled(tmp_path / f"{n}.jsonl", gold.tolist(), (gold + rng.normal(scale=s, size=80)).tolist())
        for n, s in enumerate((0.1, 1.0))
    ]
    found = compare(*paths, metrics=["mse", "spearman"])
    assert found.verdict.startswith("A is better by")
    assert found.metrics[0].difference.value < 0
    assert found.metrics[1].test == "bootstrap"
    assert found.metrics[1].p < 0.01


def test_the_users_kind_wins_and_must_fit(tmp_path):
    gold = [f"label {number}" for number in range(12)]
    a = labelled(tmp_path / "a.jsonl", gold, gold)
    b = labelled(tmp_path / "b.jsonl", gold, gold[::-1])
    assert compare(a, b).kind == "texts"
    assert compare(a, b, kind="single").metrics[0].metric == "accuracy"
    with pytest.raises(DataError, match=r"a.jsonl: gold of row r0 is 'label 0', which is no value of kind regression"):
        compare(a, b, kind="regression")
    with pytest.raises(RecipeError, match="--kind: expected one of single"):
        compare(a, b, kind="labels")
    with pytest.raises(RecipeError, match=r"--metric: roc_auc cannot be recomputed .* expected accuracy"):
        compare(a, b, kind="single", metrics=["roc_auc"])


# ---------------------------------------- the same rows


def test_other_rows_are_refused_with_ids_and_the_way_out(tmp_path):
    a = write(tmp_path / "a.jsonl", [(str(n), "x", "x") for n in range(10)])
    b = write(tmp_path / "b.jsonl", [(str(n), "x", "x") for n in range(2, 10)])
    with pytest.raises(DataError) as told:
        compare(a, b)
    assert "only in " + a + ": 2 of 10 rows (id 0, 1)" in str(told.value)
    assert "finetune evaluate RECIPE --checkpoint A --checkpoint B" in str(told.value)


def test_other_gold_answers_are_refused(tmp_path):
    a = write(tmp_path / "a.jsonl", [(str(n), "pos", "pos") for n in range(10)])
    b = write(tmp_path / "b.jsonl", [(str(n), "neg" if n == 7 else "pos", "pos") for n in range(10)])
    with pytest.raises(
        DataError, match=r"gold answers of 1 of 10 rows differ .*\(id 7; the first is 'pos' against 'neg'"
    ):
        compare(a, b)


def test_rows_are_matched_by_id_whatever_their_order(tmp_path):
    rows = [(str(n), "pos" if n % 2 else "neg", "pos" if n % 3 else "neg") for n in range(30)]
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[::-1])
    assert compare(a, b).metrics[0].difference.value == 0


def test_repeated_ids_are_matched_in_their_order(tmp_path):
    rows = [("same", "pos", "pos"), ("same", "neg", "neg"), ("other", "pos", "neg"), ("other", "neg", "neg")]
    found = compare(write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows))
    assert (found.n, found.metrics[0].a) == (4, 0.75)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"id": 1, "gold": "x"}', "line 1: no prediction; expected a line such as"),
        ("[1]", "line 1: no id and no gold and no prediction"),
        ("\n", "no rows"),
        ("[" * 100_000, "line 1: not JSON"),
        (
            '{"id": 1, "gold": "x", "prediction": "caf\udce9"}',
            r"line 1: not UTF-8 \(byte 0xe9\); save the file as UTF-8",
        ),
    ],
)
def test_files_that_are_no_predictions(tmp_path, content, message):
    good = write(tmp_path / "a.jsonl", [("1", "x", "x")])
    (tmp_path / "b.jsonl").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        compare(good, str(tmp_path / "b.jsonl"))


def test_a_byte_order_mark_is_left_out(tmp_path):
    good = write(tmp_path / "a.jsonl", [("1", "x", "x"), ("2", "x", "y")])
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    assert compare(good, str(tmp_path / "b.jsonl")).n == 2


@pytest.mark.parametrize("kind", ["tags", "entities"])
def test_rows_with_another_number_of_tags_are_refused(tmp_path, kind):
    a = labelled(tmp_path / "a.jsonl", [["O", "O"]], [["O", "O"]])
    b = labelled(tmp_path / "b.jsonl", [["O", "O"]], [["O"]])
    with pytest.raises(DataError, match=r"b.jsonl: row r0: 2 gold tags, 1 predicted tags; expected one each per token"):
        compare(a, b, kind=kind)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    a = labelled(tmp_path / "a.jsonl", [1.5, 2.5], [1.0, 2.0])
    b = labelled(tmp_path / "b.jsonl", [1.5, 2.5], [1.0, value])
    with pytest.raises(
        DataError, match=r"b.jsonl: prediction of row r1 is '(nan|inf)', which is no value of kind regr"
    ):
        compare(a, b, kind="regression")


def test_two_rows_of_numbers_have_no_rank_correlation_to_tell_apart(tmp_path):
    a = labelled(tmp_path / "a.jsonl", [1.5, 2.5], [1.0, 2.0])
    b = labelled(tmp_path / "b.jsonl", [1.5, 2.5], [2.0, 1.0])
    assert compare(a, b, metrics=["spearman"]).metrics[0].p is None


def test_places_without_predictions(tmp_path):
    good = write(tmp_path / "a.jsonl", [("1", "x", "x")])
    with pytest.raises(DataError, match="no such file or folder"):
        compare(good, str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"a folder without predictions"):
        compare(good, str(tmp_path))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(DataError, match="a record of results has no rows"):
        compare(good, str(tmp_path / "results.json"))
    with pytest.raises(RecipeError, match="the same predictions twice"):
        compare(good, good)
    with pytest.raises(DataError, match="nothing matches"):
        compare(good, str(tmp_path / "run-*"))


# ---------------------------------------- runs


def test_runs_bring_their_labels_their_metrics_and_their_split(tmp_path):
    gold = ["a", "b", "c"] * 10
    a = run_folder(tmp_path / "a", gold, gold)
    b = run_folder(tmp_path / "b", ["a"] * 30, gold, text="other")
    found = compare(a, f"{b}/run.json")
    assert (found.split, [one.metric for one in found.metrics]) == ("test", ["accuracy", "f1"])
    assert found.metrics[1].a == pytest.approx(0.75)  # the label `never` counts
    assert any("read other texts" in note for note in found.notes)
    with pytest.raises(DataError, match=r"--split: .* has no predictions of 'train'; it has test"):
        compare(a, b, split="train")


def test_runs_that_read_inputs_of_another_length_say_so(tmp_path):
    folders = [run_folder(tmp_path / name, ["a", "b"], ["a", "b"]) for name in "ab"]
    assert not [note for note in compare(*folders).notes if "tokens" in note]
    record = RunRecord.read(tmp_path / "b" / "run.json")
    record.model.max_length = 16
    record.write(tmp_path / "b" / "run.json")
    assert not [note for note in compare(*folders).notes if "tokens" in note]  # of a, nothing is known
    record = RunRecord.read(tmp_path / "a" / "run.json")
    record.model.max_length = 128
    record.write(tmp_path / "a" / "run.json")
    [note] = [note for note in compare(*folders).notes if "tokens" in note]
    assert note.startswith("inputs were read up to other lengths (128 and 16 tokens)")


def seeds(folder: Path, share: float, gold: np.ndarray, count: int, rng: np.random.Generator) -> list[str]:
    folder.mkdir()
    return [
        labelled(folder / f"seed{n}.jsonl", gold.tolist(), guesses(gold, share, 3, rng).tolist()) for n in range(count)
    ]


def test_several_seeds_give_mean_and_spread(tmp_path):
    rng = np.random.default_rng(4)
    gold = rng.integers(0, 3, 300)
    a, b = seeds(tmp_path / "a", 0.9, gold, 3, rng), seeds(tmp_path / "b", 0.6, gold, 2, rng)
    found = compare(",".join(a), str(tmp_path / "b" / "*.jsonl"), metrics=["accuracy", "f1"])
    assert (found.a, found.b) == (a, b)
    one = found.metrics[0]
    assert one.a == pytest.approx(np.mean(one.runs_a))
    assert one.spread_a == pytest.approx(np.std(one.runs_a, ddof=1))
    assert one.test == "rows and seeds"
    assert found.verdict.startswith("A is better by 0.")
    assert "3 + 2 runs" in found.verdict
    assert found.changed is None
    with pytest.raises(RecipeError, match=r"A has 3 and B 1 runs; one run has no spread"):
        compare(",".join(a), b[0])


def test_a_gap_within_the_spread_of_the_seeds_is_none(tmp_path):
    gold = ["x", "y"] * 200
    wrong = {"a": (10, 90), "b": (40, 140)}  # rows that each seed has wrong: 0.05 apart on average, 0.2 between seeds
    sides = []
    for name, counts in wrong.items():
        (tmp_path / name).mkdir()
        for seed, count in enumerate(counts):
            said = ["y" if one == "x" else "x" for one in gold[:count]] + gold[count:]
            labelled(tmp_path / name / f"{seed}.jsonl", gold, said)
        sides.append(str(tmp_path / name / "*.jsonl"))
    found = compare(*sides, metrics=["accuracy"])
    assert found.metrics[0].bootstrap_p < 0.001  # over rows alone it would look certain
    assert found.verdict.startswith("Not distinguishable on these 400 rows and 2 + 2 runs")


def test_rows_and_seeds_keep_their_level():
    rng = np.random.default_rng(5)
    called = 0
    for _ in range(2000):
        shift = rng.normal(scale=0.02)  # what these rows do to the gap
        runs = rng.normal(scale=0.01, size=(2, 3))
        rows = PairedDifference(Interval(value=0.0), None, 400, 0.02)
        called += _over_seeds(runs[0] + shift, runs[1], rows)[1] < 0.05
    assert 0.03 < called / 2000 < 0.07


def test_the_same_files_give_the_same_figures(tmp_path):
    rng = np.random.default_rng(6)
    gold = rng.integers(0, 3, 100)
    paths = [labelled(tmp_path / f"{n}.jsonl", gold.tolist(), guesses(gold, 0.7, 3, rng).tolist()) for n in range(2)]
    assert compare(*paths) == compare(*paths)
