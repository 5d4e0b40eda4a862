"""Single label, several labels, numbers, pairs: rows to tensors, losses, predictions, what the pipeline is told."""

import numpy as np
import pyarrow as pa
import pytest
import tiny_export
import tiny_run
import torch

from finetune import preparation
from finetune.errors import DataError, RecipeError
from finetune.events import Events
from finetune.recipe import load
from finetune.rows import Rows
from finetune.tasks.base import Predictions
from finetune.tasks.encoding import encode_texts
from finetune.tasks.sequence import _names_in


def prepared(folder, checkpoint, header, rows, columns, text="", **train):
    for split in ("train", "validation", "test"):
        tiny_run.write_csv(folder / f"{split}.csv", header, rows)
    return preparation.prepare(
        load(tiny_run.write_recipe(folder, checkpoint, text, columns=columns, **train)), Events()
    )


PAIRS = [("a film", "good plot", "yes"), ("the plot", "bad film", "no"), ("very good", "not bad", "yes")]


@pytest.fixture
def single(tmp_path, tiny_checkpoint):
    rows = [("good film", "b"), ("bad film", "a"), ("a plot", "c"), ("very good", "b")]
    return prepared(tmp_path, tiny_checkpoint, ("text", "label"), rows, "{text: text, label: label}")


def test_labels_are_sorted_names_and_digits_count_as_numbers(single, tmp_path, tiny_checkpoint):
    assert single.task.labels == ["a", "b", "c"]
    folder = tmp_path / "digits"
    folder.mkdir()
    rows = [("film", "10"), ("film good", "9"), ("film bad", "2")]
    ready = prepared(folder, tiny_checkpoint, ("text", "label"), rows, "{text: text, label: label}")
    assert ready.task.labels == ["2", "9", "10"]


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["1", "0001", "00001", "01", "001", "2", "-1"], ["-1", "00001", "0001", "001", "01", "1", "2"]),
        (["10", "9", "²"], ["10", "9", "²"]),
        (["10", "9", "--1"], ["--1", "10", "9"]),
    ],
)
def test_label_names_have_one_order_and_only_whole_numbers_count_as_numbers(given, ordered):
    rows = Rows("train", pa.table({"label": given}), {}, "x", "f")
    assert _names_in(rows, "label") == ordered


def test_encoding_equals_the_tokenizer_call():
    tokenizer = tiny_export.tokenizer()
    texts, pairs = ["good film the plot was very bad", "a"], ["not good", "the film"]
    ids, _, truncated = encode_texts(tokenizer, texts, pairs, 8)
    expected = tokenizer(texts, pairs, truncation="longest_first", max_length=8)["input_ids"]
    assert [one.tolist() for one in ids] == expected
    assert truncated.tolist() == [True, False]
    assert tokenizer("good " * 40)["input_ids"][40] != 0, "truncation must not stay switched on"


def test_collate_pads_to_the_longest_and_masks_the_rest(single):
    batch = single.task.collate(single.features["train"], np.array([0, 3]), single.tokenizer)
    lengths = single.features["train"].lengths[[0, 3]]
    assert batch.inputs["input_ids"].shape == (2, lengths.max())
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == lengths.tolist()
    assert batch.targets["gold"].tolist() == [1, 1]


def outputs(logits):
    return type("Outputs", (), {"logits": torch.tensor(logits)})()


def test_loss_is_the_weighted_cross_entropy_of_torch(tmp_path, tiny_checkpoint):
    rows = [("good film", "b"), ("bad film", "a"), ("a plot", "b"), ("very good", "b")]
    ready = prepared(
        tmp_path, tiny_checkpoint, ("text", "label"), rows, "{text: text, label: label}",
        class_weights="balanced", label_smoothing=0.1,
    )  # fmt: skip
    task, features = ready.task, ready.features["train"]
    np.testing.assert_allclose(task.weights, [4 / 2, 4 / 6], rtol=1e-6)
    batch = task.collate(features, np.arange(4), ready.tokenizer)
    logits = [[0.3, -1.0], [2.0, 0.1], [0.0, 0.0], [-1.0, 4.0]]
    ours = task.loss(outputs(logits), batch) / task.counts(features).sum()
    weights = torch.tensor([2.0, 2 / 3])
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), batch.targets["gold"], weights, label_smoothing=0.1
    )
    torch.testing.assert_close(ours.float(), expected)


def test_unknown_class_in_class_weights(tmp_path, tiny_checkpoint):
    with pytest.raises(
        RecipeError, match=r"train.class_weights: no label is named \['d'\]; the labels are \['a', 'b'\]"
    ):
        prepared(
            tmp_path, tiny_checkpoint, ("text", "label"), [("film", "a"), ("good", "b")],
            "{text: text, label: label}", class_weights="{d: 2.0}",
        )  # fmt: skip


def jsonl(folder, rows):
    import json

    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def from_jsonl(folder, checkpoint, rows, columns, text=""):
    jsonl(folder, rows)
    path = tiny_run.write_recipe(folder, checkpoint, text, columns=columns)
    path.write_text(path.read_text().replace(".csv", ".jsonl"))
    return preparation.prepare(load(path), Events())


MULTI = [
    {"text": "good film", "labels": ["praise", "film"]},
    {"text": "bad plot", "labels": ["plot"]},
    {"text": "the film", "labels": []},
]


def test_multi_label_loss_records_and_threshold(tmp_path, tiny_checkpoint):
    ready = from_jsonl(tmp_path, tiny_checkpoint, MULTI, "{text: text, labels: labels}")
    task = ready.task
    assert (task.problem, task.labels) == ("multi", ["film", "plot", "praise"])
    batch = task.collate(ready.features["train"], np.arange(3), ready.tokenizer)
    assert batch.targets["gold"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    logits = [[1.0, -2.0, 0.5], [0.2, 0.3, -0.1], [-3.0, 0.0, 1.0]]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), batch.targets["gold"])
    torch.testing.assert_close(task.loss(outputs(logits), batch) / 3, expected)
    scores = np.array([[0.4, 0.2, 0.35], [0.1, 0.33, 0.2], [0.29, 0.1, 0.1]])
    arrays = {"gold": batch.targets["gold"].numpy(), "logits": np.log(scores / (1 - scores)), "scores": scores}
    predictions = Predictions(["0", "1", "2"], np.zeros(3), arrays)
    task.tune(predictions)
    assert (task.thresholds == task.thresholds[0]).all()
    assert 0.29 < task.thresholds[0] <= 0.33
    assert [record["prediction"] for record in task.records(predictions)] == [["film", "praise"], ["plot"], []]
    config = tiny_run.config()
    task.configure(config)
    assert config.thresholds == task.thresholds.tolist()
    assert config.problem_type == "multi_label_classification"


def test_balanced_weights_of_several_labels_are_negatives_over_positives(tmp_path, tiny_checkpoint):
    jsonl(tmp_path, MULTI)
    path = tiny_run.write_recipe(
        tmp_path, tiny_checkpoint, columns="{text: text, labels: labels}", class_weights="balanced"
    )
    path.write_text(path.read_text().replace(".csv", ".jsonl"))
    task = preparation.prepare(load(path), Events()).task
    np.testing.assert_allclose(task.weights, [2.0, 2.0, 2.0])


def test_regression_from_text_columns_and_its_label_name(tmp_path, tiny_checkpoint):
    rows = [("good film", "4.5"), ("bad film", "0.25"), ("a plot", "2")]
    ready = prepared(
        tmp_path, tiny_checkpoint, ("text", "stars"), rows, "{text: text, label: stars}\n  problem: regression"
    )
    assert ready.task.labels == ["stars"]
    assert ready.features["train"].scalars["gold"].tolist() == [4.5, 0.25, 2.0]
    batch = ready.task.collate(ready.features["train"], np.arange(3), ready.tokenizer)
    loss = ready.task.loss(outputs([[4.0], [0.0], [2.0]]), batch)
    assert float(loss) == pytest.approx(0.25 + 0.0625)


def test_regression_refuses_what_is_no_number(tmp_path, tiny_checkpoint):
    with pytest.raises(DataError, match="much"):
        prepared(
            tmp_path, tiny_checkpoint, ("text", "label"), [("a film", "1.5"), ("film", "much")],
            "{text: text, label: label}\n  problem: regression",
        )  # fmt: skip


def test_pairs_reach_the_model_as_two_segments(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint, ("a", "b", "label"), PAIRS, "{text: a, text_pair: b, label: label}")
    first = ready.features["train"].sequences["input_ids"][0]
    words = ready.tokenizer.convert_ids_to_tokens(first.tolist())
    assert [word for word in words if not word.startswith("[")] == ["a", "film", "good", "plot"]
    cases = ready.task.cases(ready.splits["train"], Predictions(["0", "1", "2"], np.zeros(3), {"scores": np.eye(3, 2)}))
    assert cases[0].inputs == {"text": "a film", "text_pair": "good plot"}


def test_baselines_are_better_than_nothing_and_stated_with_n(tmp_path, tiny_checkpoint):
    rows = [(text, label) for text, label in tiny_run.sentences(80, seed=0)]
    ready = prepared(tmp_path, tiny_checkpoint, ("text", "label"), rows, "{text: text, label: label}")
    found = ready.task.baselines(ready.splits)
    assert found["bag_of_words"]["test"].metrics["accuracy"].value > 0.9
    assert found["majority"]["test"].n == 80
    assert found["majority"]["test"].metrics["accuracy"].value == max(
        np.mean([label == name for _, label in rows]) for name in ("pos", "neg")
    )


def test_texts_without_words_have_no_bag_of_words(tmp_path, tiny_checkpoint):
    ready = prepared(
        tmp_path, tiny_checkpoint, ("text", "label"), [("?", "a"), ("!", "b")], "{text: text, label: label}"
    )
    assert list(ready.task.baselines(ready.splits)) == ["majority"]


def test_the_constant_answer_of_each_problem(single, tmp_path, tiny_checkpoint):
    def constant(task, gold):
        found = task.constant(Predictions([], np.zeros(len(gold)), {"gold": gold, "scores": gold}))
        return found[0], task.score(found[1])

    name, scores = constant(single.task, np.array([1, 1, 0, 2]))
    assert (name, scores["accuracy"].value) == ("b", 0.5)
    for folder in ("several", "numbers"):
        (tmp_path / folder).mkdir()
    rows = [{"text": "good", "labels": ["x"]}, {"text": "bad", "labels": ["x", "y"]}]
    several = from_jsonl(tmp_path / "several", tiny_checkpoint, rows, "{text: text, labels: labels}").task
    name, scores = constant(several, np.array([[1, 0], [1, 1]], dtype=np.uint8))
    assert (name, scores["accuracy"].value) == ("x", 0.5)
    rows = [("good", "1.5"), ("bad", "2.5")]
    numbers = prepared(
        tmp_path / "numbers",
        tiny_checkpoint,
        ("text", "label"),
        rows,
        "{text: text, label: label}\n  problem: regression",
    ).task
    name, scores = constant(numbers, np.array([1.0, 2.0]))
    assert (name, scores["mse"].value, scores["pearson"].value) == ("1.5", 0.25, None)
