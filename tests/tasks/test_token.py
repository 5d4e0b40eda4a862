"""The token head from rows to a published model: words to labels, losses, predictions, what the pipeline answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import row_recipes
import token_material
import torch

import finetune
from finetune import assessment, behaviour, data, model, preparation, run
from finetune.errors import DataError, ModelError
from finetune.events import Events
from finetune.prediction import predict_lines
from finetune.recipe import load
from finetune.tasks.base import Predictions

ENTITIES = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
LONG = ("Anna in Paris is in the New York works . " * 4, "B-PER O B-LOC O O O B-LOC I-LOC O O " * 4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = token_material.wordpiece()
    torch.manual_seed(1)
    BertModel(token_material.config([], len(tokenizer), num_labels=2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepared(folder, checkpoint, **blocks):
    return preparation.prepare(load(token_material.write_recipe(folder, checkpoint, **blocks)), Events())


def plain(words):
    return " ".join("PROPN" if word[0].isupper() else "X" for word in words.split())


PLAIN = tuple((words, plain(words)) for words, _ in token_material.ROWS)


def outputs_for(features, labels, scores=None, losses=None):
    """One array a feature as a model gives them: `labels` by (row, word), O elsewhere."""
    found = {"label": [], "score": [], "gold_score": [], "loss": []}
    for number, row in enumerate(features.scalars["row"].tolist()):
        words = features.sequences["words"][number]
        found["label"].append(np.array([labels.get((row, int(word)), 0) for word in words] + [5, 5]))  # and padding
        found["score"].append(np.array([(scores or {}).get((row, int(word)), 0.5) for word in words] + [0.9, 0.9]))
        found["gold_score"].append(found["score"][-1] / 2)
        found["loss"].append(np.float32((losses or {}).get(number, 0.0)))
    return found


# ------------------------------------------------------------------------------------------ rows to tensors


def test_labels_are_iob2_sorted_by_type(tmp_path, encoder):
    ready = prepared(tmp_path, encoder)
    assert ready.task.labels == ENTITIES
    assert ready.task.problem == "entities"
    assert prepared(tmp_path, encoder, rows=dict.fromkeys(("train", "test", "validation"), PLAIN)).task.labels == [
        "PROPN",
        "X",
    ]


def test_io_tags_are_taught_as_they_are_and_scored_as_iob2(tmp_path, encoder):
    rows = [(words, tags.replace("B-", "I-")) for words, tags in token_material.ROWS]
    ready = prepared(tmp_path, encoder, rows=dict.fromkeys(("train", "test", "validation"), rows))
    assert ready.task.labels == ["O", "I-LOC", "I-ORG", "I-PER"]
    words, gold = ready.features["test"].sequences["words"][2], ready.features["test"].sequences["labels"][2]
    named = [ready.task.labels[label] for label in gold[words >= 0]]
    assert named == ["I-PER", "I-PER", "O", "O", "I-LOC", "I-LOC"]
    assert ready.task.answer_labels == ENTITIES
    assert behaviour._label(ready.task, ["B-LOC", "I-LOC", "O"]) == "B-LOC, I-LOC, O"
    assert ready.task.notes()[-1].startswith("No label says where an entity begins")
    assert "No label" not in str(prepared(tmp_path, encoder).task.notes())
    assert "tags: entities in the IO scheme; neighbouring entities of one type cannot" in str(ready.audit.notes)


def test_the_denominator_counts_every_label_once(tmp_path, encoder):
    """Windows overlap, labels do not."""
    rows = {"train": [LONG, *token_material.ROWS]}
    ready = prepared(tmp_path, encoder, rows=rows, data="  stride: 8")
    counts = ready.task.counts(ready.features["train"])
    labels = ready.features["train"].sequences["labels"].values
    assert counts.sum() == (labels >= 0).sum()
    words = ready.features["train"].sequences["words"].values
    assert (words >= 0).sum() == sum(len(row[0].split()) for row in rows["train"])
    assert len(counts) > len(rows["train"]) + 3
    assert preparation.facts(ready.splits["train"], ready.features["train"]).windows == len(counts)
    assert "train: 1 row is longer than 16 tokens and read in overlapping windows" in ready.audit.notes


@pytest.mark.parametrize("rows", [token_material.ROWS, [("works abx", "X Y"), ("abx", "X")]])
def test_all_pieces_are_taught_when_asked_for(tmp_path, encoder, rows):
    """Entities (inside a word I- follows B-) and plain tags."""
    rows = dict.fromkeys(("train", "validation", "test"), rows)
    first, begins, every = (
        prepared(tmp_path, encoder, rows=rows, data=f"  tag_pieces: {which}").features["train"]
        for which in ("first", "begins", "all")
    )
    assert np.all(every.sequences["words"].values == first.sequences["words"].values)
    at_first = first.sequences["words"].values >= 0
    labels = every.sequences["labels"].values
    assert np.all(labels[at_first] == first.sequences["labels"].values[at_first])
    assert (labels >= 0).sum() == every.sequences["input_ids"].lengths.sum() - 2 * len(every)
    assert (first.sequences["labels"].values >= 0).sum() == at_first.sum() < (labels >= 0).sum()
    assert at_first.sum() <= (begins.sequences["labels"].values >= 0).sum() <= (labels >= 0).sum()


def test_the_loss_is_the_sum_over_labels(tmp_path, encoder):
    ready = prepared(tmp_path, encoder, train="  label_smoothing: 0.1")
    batch = ready.task.collate(ready.features["test"], np.arange(4), ready.tokenizer)
    torch.manual_seed(0)
    logits = torch.randn(*batch.inputs["input_ids"].shape, len(ENTITIES))
    expected = 0.0
    for row, labels in enumerate(batch.targets["labels"].tolist()):
        for place, label in enumerate(labels):
            if label >= 0:
                logs = logits[row, place].log_softmax(-1)
                expected -= 0.9 * logs[label] + 0.1 * logs.mean()
    outputs = type("Outputs", (), {"logits": logits})
    assert ready.task.loss(outputs, batch).item() == pytest.approx(float(expected), rel=1e-5)
    assert batch.inputs["attention_mask"].sum() == ready.features["test"].lengths.sum()
    assert set(batch.inputs) == {"input_ids", "token_type_ids", "attention_mask"}


def test_predictions_are_label_and_probability_of_each_piece(tmp_path, encoder):
    ready = prepared(tmp_path, encoder)
    batch = ready.task.collate(ready.features["test"], np.arange(4), ready.tokenizer)
    torch.manual_seed(0)
    logits = 3 * torch.randn(*batch.inputs["input_ids"].shape, len(ENTITIES))
    found = ready.task.predict(lambda **_: type("Outputs", (), {"logits": logits}), batch)
    best = logits.softmax(-1).max(-1)
    assert torch.equal(found["label"].long(), best.indices)
    assert torch.allclose(found["score"], best.values, atol=1e-6)
    gold = batch.targets["labels"]
    own = logits.softmax(-1).gather(-1, gold.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(found["gold_score"], torch.where(gold >= 0, own, 1.0), atol=1e-6)
    flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets["labels"].flatten(), reduction="sum")
    assert found["loss"].sum().item() == pytest.approx(flat.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------ predictions


def test_windows_are_merged_and_no_word_is_lost(tmp_path, encoder):
    rows = {"test": [LONG, ("\u200b Anna", "B-PER I-PER"), ("in", "O")]}
    ready = prepared(tmp_path, encoder, rows=rows, data="  stride: 5")
    features = ready.features["test"]
    number = {label: place for place, label in enumerate(ENTITIES)}
    truth = {(0, word): number[tag] for word, tag in enumerate(LONG[1].split())} | {(1, 1): number["I-PER"]}
    found = ready.task.decode(outputs_for(features, truth), features, ready.splits["test"])
    assert found.arrays["gold"] == [LONG[1].split(), ["B-PER", "I-PER"], ["O"]]
    assert found.arrays["predicted"] == [LONG[1].split(), ["O", "B-PER"], ["O"]]
    assert "test: the tokenizer leaves nothing of 1 words (invisible characters); they get O" in ready.audit.notes


def test_predictions_that_break_iob2_are_read_as_the_pipeline_does(tmp_path, encoder):
    ready = prepared(tmp_path, encoder)
    number = {label: place for place, label in enumerate(ENTITIES)}
    guesses = {(0, 0): "I-PER", (0, 1): "I-PER", (2, 0): "B-PER", (2, 1): "I-LOC", (2, 2): "I-LOC", (2, 4): "I-LOC"}
    features = ready.features["test"]
    found = ready.task.decode(
        outputs_for(features, {place: number[tag] for place, tag in guesses.items()}), features, ready.splits["test"]
    )
    assert found.arrays["predicted"][0] == ["B-PER", "I-PER", "O", "O", "O"]
    assert found.arrays["predicted"][2] == ["B-PER", "B-LOC", "I-LOC", "O", "B-LOC", "O"]


def test_scores_and_losses_are_means_over_words(tmp_path, encoder):
    ready = prepared(tmp_path, encoder, rows={"test": [("Anna works", "B-PER O"), ("U.S. is", "B-LOC O")]})
    features = ready.features["test"]
    scores = {(0, 0): 0.2, (0, 1): 0.6}
    found = ready.task.decode(outputs_for(features, {}, scores, {0: 3.0, 1: 10.0}), features, ready.splits["test"])
    assert found.arrays["score"].tolist() == pytest.approx([0.4, 0.5])
    assert found.loss.tolist() == pytest.approx([1.5, 5.0])
    [first, _] = ready.task.records(found)
    assert first == {
        "id": "0",
        "gold": ["B-PER", "O"],
        "prediction": ["O", "O"],
        "score": pytest.approx(0.4),
        "loss": pytest.approx(1.5),
    }
    json.dumps(first)


def test_scores(tmp_path, encoder):
    ready = prepared(tmp_path, encoder)
    arrays = {
        "gold": [["B-PER", "I-PER", "O"], ["B-LOC", "O"]],
        "predicted": [["B-PER", "I-PER", "O"], ["B-PER", "O"]],
    }
    found = ready.task.score(Predictions(["0", "1"], np.zeros(2), arrays))
    assert {name: metric.value for name, metric in found.items()} == {
        "f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "accuracy": 0.8,
    }
    arrays["published"] = ([["B-PER"], ["B-LOC"]], [["B-PER"], ["B-LOC"]])
    found = ready.task.score(Predictions(["0", "1"], np.zeros(2), arrays))
    assert found["f1_pipeline"].value == 1.0
    assert (found["f1/PER"].value, found["f1/LOC"].value) == (pytest.approx(2 / 3), 0.0)
    assert list(ready.task.score(Predictions(["0", "1"], np.zeros(2), arrays), ["recall"])) == ["recall", "f1_pipeline"]


def test_baseline_is_the_usual_tag_of_a_word(tmp_path, encoder):
    rows = {
        "train": [("Anna in Paris", "B-PER O B-LOC"), ("Anna x New York", "B-ORG O B-LOC I-LOC"), ("Anna", "B-PER")],
        "test": [("Anna York York in abx", "B-PER B-LOC I-LOC O O")],
    }
    ready = prepared(tmp_path, encoder, rows=rows | {"validation": rows["train"]})
    found = ready.task.baselines(ready.splits)["most_frequent_tag"]
    assert found["test"].metrics["f1"].value == 1.0
    assert found["validation"].metrics["f1"].value == pytest.approx(0.8)
    assert set(found) == {"validation", "test"}


# ------------------------------------------------------------------------------------------ checkpoints


def test_a_foreign_token_head_is_renewed(tmp_path):
    folder = token_material.save(tmp_path / "foreign", ["O", "B-X", "I-X", "B-Y", "I-Y", "B-Z", "I-Z"])
    ready = prepared(tmp_path, folder)
    found = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
    assert found.head_swap.new.names == found.head_swap.dropped.names == ["classifier.bias", "classifier.weight"]
    stored = token_weights(folder)
    assert stored.shape == found.model.classifier.weight.shape
    assert not torch.equal(stored, found.model.classifier.weight)
    assert [found.model.config.id2label[number] for number in range(7)] == ENTITIES


def token_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")["classifier.weight"]


@pytest.mark.parametrize(
    "labels",
    [
        ENTITIES,
        ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "B-ORG", "I-ORG"],
        [*ENTITIES, "B-X"],
        ["O", "I-LOC", "I-ORG", "I-PER"],
    ],
)
def test_keep_head_goes_on_with_the_labels_in_the_order_of_the_head(tmp_path, labels):
    folder = token_material.save(tmp_path / "own", labels)
    ready = prepared(tmp_path, folder, model="  keep_head: true")
    found = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
    assert torch.equal(token_weights(folder), found.model.classifier.weight)
    assert found.head_swap.new.count == 0
    assert [found.model.config.id2label[number] for number in range(len(labels))] == labels
    words, gold = ready.features["test"].sequences["words"][2], ready.features["test"].sequences["labels"][2]
    tags = [labels[label] for label in gold[words >= 0]]
    assert [tag[2:] for tag in tags] == ["PER", "PER", "", "", "LOC", "LOC"]
    assert "B-X" not in labels or tags[4:] == ["B-LOC", "I-LOC"]


def test_keep_head_with_other_labels_is_refused(tmp_path):
    folder = token_material.save(tmp_path / "other", ["O", "B-PER", "I-PER"])
    ready = prepared(tmp_path, folder, model="  keep_head: true")
    with pytest.raises(ModelError, match=r"keep_head: the labels of .* are \['O', 'B-PER', 'I-PER'\]"):
        model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)


def test_a_slow_tokenizer_is_refused(tmp_path, encoder):
    ready = prepared(tmp_path, encoder)
    slow = type("OldTokenizer", (), {"is_fast": False})()
    with pytest.raises(ModelError, match=r"tokenizer \(OldTokenizer\) is a slow one"):
        ready.task.fit_to(ready.config, slow)


def evaluated(folder, labels, tokenizer=None, renamed=None, **blocks):
    checkpoint = token_material.save(folder / "checkpoint", labels, tokenizer)
    path = token_material.write_recipe(folder, checkpoint, **blocks)
    return assessment.evaluate(load(path, ["train=null"]), str(checkpoint), labels=renamed)


def test_evaluation_matches_labels_by_name_in_any_order_case_and_scheme(tmp_path):
    """The same random weights under permuted names: another column of the head, the same classes."""
    orders = (ENTITIES, ["I-per", "B-per", "I-loc", "B-loc", "O", "I-org", "B-org"])
    found = []
    for number, labels in enumerate(orders):
        folder = tmp_path / str(number)
        folder.mkdir()
        checkpoint = token_material.save(folder / "checkpoint", labels)
        if number:
            permute_head(checkpoint, [[name.casefold() for name in ENTITIES].index(name.casefold()) for name in labels])
        path = token_material.write_recipe(folder, checkpoint)
        record = finetune.evaluate(load(path, ["train=null"]), str(checkpoint))
        found.append({name: metric.value for name, metric in record.results["test"].metrics.items()})
        predictions = folder / "out" / "evaluations"
        [line, *_] = next(predictions.rglob("test.jsonl")).read_text().splitlines()
        found[-1]["first"] = json.loads(line)["prediction"]
    assert found[1]["first"] == found[0]["first"]
    assert found[1]["f1_pipeline"] == pytest.approx(found[0]["f1_pipeline"])
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], abs=1e-5)


def permute_head(folder, order):
    """Give class n of the saved head the weights of class order[n]."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][order].contiguous()
    save_file(weights, path, metadata={"format": "pt"})


def test_evaluation_of_a_head_trained_on_the_io_scheme(tmp_path):
    record = evaluated(tmp_path, ["O", "I-LOC", "I-ORG", "I-PER"])
    assert record.model.labels == ["O", "I-LOC", "I-ORG", "I-PER"]
    assert {"f1", "f1_pipeline", "f1/PER"} <= set(record.results["test"].metrics)


def test_evaluation_with_labels_that_do_not_match_is_refused(tmp_path):
    with pytest.raises(ModelError) as error:
        evaluated(tmp_path, ["O", "B-PERSON", "I-PERSON", "B-LOC", "I-LOC", "B-ORG", "I-ORG"])
    assert "its labels are O, B-PERSON" in str(error.value)
    assert "without a partner: B-PER" in str(error.value)


def test_evaluation_with_labels_that_are_renamed(tmp_path):
    renamed = {"B-PERSON": "B-PER", "I-PERSON": "I-PER"}
    labels = ["O", "B-PERSON", "I-PERSON", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
    assert evaluated(tmp_path, labels, renamed=renamed).model.labels[1:3] == ["B-PER", "I-PER"]


def test_types_under_exchanged_names_are_pointed_out(tmp_path):
    """Rows tagged by the model itself, and its types under each other's names."""
    checkpoint = token_material.save(tmp_path / "checkpoint", ENTITIES)
    path = token_material.write_recipe(tmp_path, checkpoint, rows={"test": token_material.ROWS * 10})
    finetune.evaluate(load(path, ["train=null"]), str(checkpoint))
    lines = next((tmp_path / "out" / "evaluations").rglob("test.jsonl")).read_text().splitlines()
    own = [" ".join(json.loads(line)["prediction"]) for line in lines]
    rows = [(words, tags) for (words, _), tags in zip(token_material.ROWS * 10, own, strict=True)]
    kinds = {tag[2:] for _, tags in rows for tag in tags.split()} - {""}
    assert len(kinds) > 1
    turned = {"LOC": "ORG", "ORG": "PER", "PER": "LOC"}
    names = ["O", *(f"{name[:2]}{turned[name[2:]]}" for name in ENTITIES[1:])]
    exchanged = token_material.save(tmp_path / "exchanged", names)
    path = token_material.write_recipe(tmp_path, exchanged, rows={"test": rows})
    record = finetune.evaluate(load(path, ["train=null"]), str(exchanged))
    assert record.results["test"].metrics["f1"].value < 0.5
    [warning] = record.warnings
    flag = dict(pair.split("=") for pair in warning.rpartition("--labels ")[2].split(","))
    assert all(flag[f"B-{turned[kind]}"] == f"B-{kind}" for kind in kinds)


def test_a_sequence_checkpoint_is_refused(tmp_path, tiny_checkpoint):
    import tiny_export

    checkpoint = tiny_export.build(tmp_path / "classifier")
    path = token_material.write_recipe(tmp_path, checkpoint)
    with pytest.raises(ModelError, match="saved as BertForSequenceClassification, expected BertForTokenClassification"):
        finetune.evaluate(load(path, ["train=null"]), str(checkpoint))


# ------------------------------------------------------------------------------------------ bad input


def spans_file(folder, *rows):
    row_recipes.write(
        folder, "train.jsonl", row_recipes.jsonl([{"text": text, "spans": spans} for text, spans in rows])
    )
    columns = {"text": "text", "spans": "spans"}
    return row_recipes.make(folder, "./train.jsonl", "tokens", splits={"train": "train"}, columns=columns)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 5)], "span 0 to 5 (X): outside its text of 4 characters"),
        ([(-1, 3)], "span -1 to 3 (X): outside its text of 4 characters"),
        ([(2, 2)], "span 2 to 2 (X): holds no character but white space"),
        ([(3, 2)], "span 3 to 2 (X): holds no character but white space"),
        ([(1, 4), (0, 2)], "span 1 to 4 (X): overlaps span 0 to 2"),
    ],
)
def test_misplaced_spans_are_refused_with_their_line(tmp_path, spans, message):
    listed = [{"start": start, "end": end, "label": "X"} for start, end in spans]
    recipe = spans_file(tmp_path, ("Anna", [{"start": 0, "end": 4, "label": "X"}]), ("a bc", listed))
    with pytest.raises(DataError) as error:
        data.load(recipe)
    assert f"train.jsonl, line 2: {message}" in str(error.value)


def test_misplaced_spans_can_be_left_out(tmp_path):
    good, bad = [{"start": 0, "end": 4, "label": "X"}], [{"start": 0, "end": 9, "label": "X"}]
    recipe = spans_file(tmp_path, ("Anna", good), ("Anna", bad))
    recipe.data.on_bad_row = "skip"
    rows = data.load(recipe)["train"]
    assert (len(rows), rows.dropped) == (1, {"misplaced spans": ["1"]})


def test_tokens_and_tags_of_unequal_number_are_refused(tmp_path):
    row_recipes.write(tmp_path, "train.jsonl", row_recipes.jsonl([{"tokens": ["a", "b"], "tags": ["O"]}]))
    recipe = row_recipes.make(tmp_path, "./train.jsonl", "tokens", splits={"train": "train"})
    with pytest.raises(DataError, match=r"train.jsonl, line 1: 2 tokens and 1 tags"):
        data.load(recipe)


def test_nothing_but_o_is_refused(tmp_path, encoder):
    rows = dict.fromkeys(("train", "validation", "test"), (("Anna works", "O O"),))
    with pytest.raises(DataError, match="expected words with tags, found none but O in train"):
        prepared(tmp_path, encoder, rows=rows)


def test_a_metric_of_another_kind_is_refused_before_training(tmp_path, encoder):
    rows = dict.fromkeys(("train", "validation", "test"), PLAIN)
    with pytest.raises(finetune.FinetuneError, match="f1_macro"):
        prepared(tmp_path, encoder, rows=rows, end="evaluate: {metrics: [f1_macro]}")


# ------------------------------------------------------------------------------------------ the whole way


@pytest.fixture(scope="module")
def finished(tmp_path_factory, encoder):
    """A run from recipe to verified export, with LoRA; its folder and record."""
    folder = tmp_path_factory.mktemp("run")
    text = token_material.write_recipe(folder, encoder, model="  lora: {r: 4, alpha: 8}", rate="2.0e-2")
    record = run.train(load(text), events=Events())
    return folder / "out", record


def test_the_export_is_verified_on_rows_and_difficult_texts(finished):
    folder, record = finished
    assert record.status == "finished"
    assert record.export.verified
    cases = [json.loads(line) for line in (folder / "verification.jsonl").read_text().splitlines()]
    assert [case["inputs"] for case in cases[:4]] == [words for words, _ in token_material.ROWS]
    assert len(cases) == 7
    assert cases[4]["inputs"] == ""
    assert cases[4]["expected"] == []
    assert cases[6]["inputs"].count("word") == 2000
    assert all(case["kwargs"] == {"aggregation_strategy": "first", "stride": 4} for case in cases)
    keys = {"entity_group", "score", "word", "start", "end"}
    assert any(item.keys() == keys for case in cases for item in case["expected"])


def test_results_are_learned_and_complete(finished):
    results = finished[1].results["test"].metrics
    assert results["f1"].value > 0.9
    assert {"precision", "recall", "accuracy", "f1_pipeline", "f1/PER", "f1/LOC", "f1/ORG", "loss"} < set(results)
    assert finished[1].baselines["most_frequent_tag"]["test"].metrics["f1"].value is not None


def test_a_stranger_gets_what_was_evaluated(finished):
    """The F1 through the pipeline is that of calls as the card gives them."""
    from transformers import pipeline

    folder, record = finished
    tag = pipeline("token-classification", model=str(folder / "export"))
    right = said = there = 0
    for words, tags in token_material.ROWS:
        starts = np.cumsum([0, *(len(word) + 1 for word in words.split())])
        gold = set()
        for number, name in enumerate(tags.split()):
            if name[:2] == "B-":
                gold.add((name[2:], starts[number], starts[number + 1] - 1))
            elif name[:2] == "I-":
                [last] = [one for one in gold if one[2] == starts[number] - 1]
                gold = gold - {last} | {(*last[:2], starts[number + 1] - 1)}
        found = {
            (one["entity_group"], one["start"], one["end"])
            for one in tag(words, aggregation_strategy="first", stride=4)
        }
        right, said, there = right + len(gold & found), said + len(found), there + len(gold)
    assert record.results["test"].metrics["f1_pipeline"].value == pytest.approx(2 * right / (said + there))


def test_the_adapter_and_its_base_give_the_merged_export(finished, encoder):
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForTokenClassification

    export = finished[0] / "export"
    merged = AutoModelForTokenClassification.from_pretrained(export)
    base = AutoModelForTokenClassification.from_pretrained(encoder, config=AutoConfig.from_pretrained(export))
    adapted = PeftModel.from_pretrained(base, export / "adapter")
    ids = torch.arange(40).reshape(4, 10) % 20
    with torch.no_grad():
        difference = merged(input_ids=ids).logits - adapted(input_ids=ids).logits
    assert difference.abs().max() < 1e-5
    assert merged.config.id2label == dict(enumerate(ENTITIES))


def test_the_card_says_how_to_call_the_model(finished):
    card = (finished[0] / "export" / "README.md").read_text()
    assert 'print(tag(text, aggregation_strategy="first", stride=4))' in card
    assert "F1 through the pipeline" in card
    assert "F1 of PER" in card
    assert "test: the pipeline forms 3 of 19 words otherwise than the data (such as 'U.S.')" in card
    assert "the longest of entities that overlap" in card


def test_predict_reads_texts_and_tokens(finished):
    lines = [{"text": "Anna works in Paris ."}, {"tokens": ["Anna", "works", "in", "Paris", "."]}, {"text": ""}]
    answers = list(predict_lines(str(finished[0] / "export"), map(json.dumps, lines)))
    entities = [(one["entity_group"], one["start"], one["end"]) for one in answers[0]["prediction"]]
    assert entities == [("PER", 0, 4), ("LOC", 14, 19)]
    assert [one["word"] for one in answers[1]["prediction"]] == ["anna", "paris"]
    assert answers[2]["prediction"] == []
    json.dumps(answers)


def test_predict_refuses_other_inputs(finished):
    with pytest.raises(DataError, match="line 1: expected a text under text, or a list of words under tokens, found"):
        list(predict_lines(str(finished[0] / "export"), ['{"tokens": "Anna"}']))


# ------------------------------------------------------------------------------------------ plain tags


@pytest.fixture(scope="module")
def tagger(tmp_path_factory, encoder):
    """A run on plain tags; its folder and record."""
    folder = tmp_path_factory.mktemp("plain")
    rows = {"train": PLAIN * 6, "validation": PLAIN, "test": [*PLAIN, (LONG[0], plain(LONG[0]))]}
    record = run.train(load(token_material.write_recipe(folder, encoder, rows=rows)), events=Events())
    return folder / "out", record


def test_plain_tags_are_published_without_aggregation(tagger):
    folder, record = tagger
    assert record.export.verified
    assert set(record.results["test"].metrics) == {"accuracy", "f1", "precision", "recall", "loss"}
    cases = [json.loads(line) for line in (folder / "verification.jsonl").read_text().splitlines()]
    assert all(case["kwargs"] == {} for case in cases)
    assert cases[0]["expected"][0].keys() == {"entity", "score", "index", "word", "start", "end"}
    assert len(cases[-1]["expected"]) == 14  # of 2,000: the pipeline reads one window
    card = (folder / "export" / "README.md").read_text()
    assert "print(tag(text))" in card
    assert "The tag of a word is that of its first piece" in card


def test_predict_tags_every_word_of_a_long_text(tagger):
    """As evaluation does: in windows, though the pipeline itself reads only one."""
    folder, record = tagger
    words = LONG[0].split()
    [answer, short] = predict_lines(
        str(folder / "export"), [json.dumps({"tokens": words}), json.dumps({"text": "Steel's \u200b is"})]
    )
    found = answer["prediction"]
    assert [one["word"] for one in found] == words
    assert [" ".join(words)[one["start"] : one["end"]] for one in found] == words
    right = np.mean([one["entity"] == tag for one, tag in zip(found, plain(LONG[0]).split(), strict=True)])
    assert right > 0.8
    assert record.results["test"].metrics["accuracy"].value > 0.8
    assert [(one["word"], one["entity"] is None) for one in short["prediction"]] == [
        ("Steel", False),
        ("'", False),
        ("s", False),
        ("\u200b", True),
        ("is", False),
    ]
