"""The span head: targets, loss, threshold, what is saved with the model, and a whole run."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import span_material
import torch
import transformers

import finetune
from finetune import evaluation, loop, model, prediction, preparation, pretrained, run
from finetune.errors import DataError, ModelError
from finetune.events import Events
from finetune.inference import question_answering as qa
from finetune.recipe import load
from finetune.record import RunRecord
from finetune.tasks.answers import IGNORED, best_threshold
from finetune.tasks.base import Predictions
from finetune.tasks.span import SpanTask

CONTEXT = "anna lives in paris . " * 6 + "dora works in quito ."


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return span_material.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def ready(tmp_path, encoder):
    return preparation.prepare(load(span_material.write_recipe(tmp_path, encoder)), Events())


def encoded(task, answers, context=CONTEXT):
    """Windows of one question, with the texts that their targets mark."""
    batch = {"question": ["who works in quito?"], "context": [context], "answers": [answers], "id": ["0"]}
    columns = task.encode(batch, span_material.wordpiece())
    texts = []
    for number, (start, end) in enumerate(zip(columns["start"], columns["end"], strict=True)):
        low, high = columns["offset_start"][number], columns["offset_end"][number]
        texts.append(context[low[start] : high[end]] if start >= 0 else None)
    return columns, texts


def answer(text, start):
    return {"text": [text], "answer_start": [start]}


def test_the_halves_of_an_encoder_decoder_are_its_backbone(tmp_path):
    words = span_material.wordpiece()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    marks = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    net = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=len(words), **sizes, **marks))
    net.save_pretrained(tmp_path / "t5")
    words.save_pretrained(tmp_path / "t5")
    ready = preparation.prepare(load(span_material.write_recipe(tmp_path, tmp_path / "t5")), Events())
    found = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
    assert found.head_swap.new.names == ["qa_outputs.bias", "qa_outputs.weight"]
    parameters, own = dict(found.model.named_parameters()), dict(net.named_parameters())
    assert all(torch.equal(parameters[name], own[name]) for name in found.head_swap.reused.names)


# ---------------------------------------- rows to targets


def test_the_windows_that_hold_the_answer_are_taught_it_and_the_others_none(ready):
    columns, texts = encoded(ready.task, answer("dora works", CONTEXT.index("dora")))
    assert len(texts) > 2
    assert texts[-1] == "dora works"
    assert set(texts[:-2]) == {""}
    whole = [CONTEXT[starts.max() :] for starts in columns["offset_end"]]
    for text, null, start, end, rest in zip(
        texts, columns["null"], columns["start"], columns["end"], whole, strict=True
    ):
        assert text == "" or not rest or text == "dora works"
        if text == "":
            assert (start, end) == (null, null)


def test_an_answer_across_the_edge_of_a_window_is_not_in_it(ready):
    columns, _ = encoded(ready.task, answer("paris", 14))
    edge = int(columns["offset_end"][0].max())
    text = CONTEXT[edge - 6 : edge + 6]
    _, texts = encoded(ready.task, answer(text, edge - 6))
    assert texts[0] == ""


def test_an_open_question_is_taught_the_classification_token(ready):
    columns, texts = encoded(ready.task, {"text": [], "answer_start": []})
    assert set(texts) == {""}
    assert (columns["start"] == columns["null"]).all()


def test_white_space_around_an_answer_is_not_part_of_the_target(ready):
    _, texts = encoded(ready.task, answer(" quito . ", CONTEXT.index(" quito")))
    assert texts[-1] == "quito ."


def test_an_answer_without_a_token_is_left_out_of_the_loss(ready):
    context = "anna \u200b\u200b lives"
    columns, texts = encoded(ready.task, answer("\u200b", 5), context)
    assert texts == [None]
    assert columns["start"].tolist() == columns["end"].tolist() == [IGNORED]
    features = SimpleNamespace(scalars={"start": np.array([IGNORED, 0, 3])})
    assert ready.task.counts(features).tolist() == [0, 1, 1]


def test_a_cut_question_counts_as_truncated(ready):
    tokenizer = span_material.wordpiece()
    batch = {"question": ["who?", "who " * 30], "context": [CONTEXT] * 2, "answers": [answer("paris", 14)] * 2}
    columns = ready.task.encode(batch | {"id": ["0", "1"]}, tokenizer)
    assert set(columns["row"][columns["truncated"]]) == {1}
    assert max(map(len, columns["input_ids"])) == ready.task.max_length


def test_a_slow_tokenizer_is_refused(ready):
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(ModelError, match=r"tokenizer \(SimpleNamespace\) is a slow one"):
        ready.task.encode({"question": [], "context": [], "answers": []}, slow)


def test_survey_counts_open_windowed_and_cut_questions(ready):
    said = ready.task.survey(ready.splits, ready.features, ready.tokenizer)
    open_ones = sum(row["is_impossible"] for row in span_material.rows(48, 0))
    assert said[0] == f"train: of 48 questions, {open_ones} without an answer, 16 longer than a window"
    assert any(note == said[0] for note in ready.audit.notes)


# ---------------------------------------- loss


def test_loss_is_that_of_transformers_and_independent_of_padding(ready):
    net, features = span_material.model(), ready.features["train"]
    short, long = int(features.lengths.argmin()), int(features.lengths.argmax())
    assert features.lengths[short] < features.lengths[long]
    alone = []
    for index in (short, long):
        batch = ready.task.collate(features, np.array([index]), ready.tokenizer)
        theirs = net(**batch.inputs, start_positions=batch.targets["start"], end_positions=batch.targets["end"]).loss
        alone.append(ready.task.loss(net(**batch.inputs), batch))
        torch.testing.assert_close(alone[-1], theirs)
    both = ready.task.collate(features, np.array([short, long]), ready.tokenizer)
    torch.testing.assert_close(ready.task.loss(net(**both.inputs), both), sum(alone), rtol=1e-4, atol=1e-5)


def test_a_window_without_a_target_adds_nothing(ready):
    net, features = span_material.model(), ready.features["train"]
    batch = ready.task.collate(features, np.array([0, 1]), ready.tokenizer)
    one = ready.task.collate(features, np.array([0]), ready.tokenizer)
    for name in ("start", "end"):
        batch.targets[name][1] = IGNORED
    torch.testing.assert_close(
        ready.task.loss(net(**batch.inputs), batch), ready.task.loss(net(**one.inputs), one), rtol=1e-4, atol=1e-5
    )


# ---------------------------------------- predictions


@pytest.fixture
def predicted(ready):
    """Predictions of a random model for the validation rows."""
    net, features, rows = span_material.model(), ready.features["validation"], ready.splits["validation"]
    outputs = loop.predict_here(net, ready.task, features, ready.tokenizer, torch.device("cpu"))
    return net, ready.task.decode(outputs, features, rows)


def test_evaluation_and_pipeline_give_the_same_answers(ready, predicted):
    net, predictions = predicted
    for threshold in (None, 0.0, float(np.median(predictions.arrays["ranked"].null))):
        ready.task.threshold = threshold
        ready.task.configure(net.config)
        pipe = qa.QuestionAnsweringPipeline(model=net, tokenizer=ready.tokenizer, device="cpu")
        for case in ready.task.cases(ready.splits["validation"], predictions):
            found = pipe(case.inputs, **case.kwargs)
            assert found == case.expected | {"score": pytest.approx(case.expected["score"], abs=1e-5)}


def test_loss_of_a_row_is_the_mean_over_its_windows(ready):
    features = SimpleNamespace(
        scalars={"row": np.array([0, 0, 1]), "start": np.array([0, 2, IGNORED])},
        sequences={name: SimpleNamespace(offsets=np.zeros(4, np.int64), values=np.zeros(1)) for name in
                   ("offset_start", "offset_end")},
    )  # fmt: skip
    outputs = {name: [np.zeros(2, np.int64)] * 3 for name in ("start", "end")}
    outputs |= {"score": [np.zeros(2)] * 3, "null": [0.0] * 3, "loss": [1.0, 4.0, 0.0]}
    rows = ready.splits["validation"].take(np.array([0, 1]))
    assert ready.task.decode(outputs, features, rows).loss.tolist() == [2.5, 0.0]


def test_records_and_scores_follow_the_decision(ready, predicted):
    _, predictions = predicted
    for threshold in (-1e3, 1e3):
        ready.task.threshold = threshold
        records = ready.task.records(predictions)
        assert all((record["prediction"] == "") == (threshold < 0) for record in records)
        scores = ready.task.score(predictions)
        open_share = np.mean([not gold for gold in predictions.arrays["gold"]])
        if threshold < 0:
            assert scores["f1"].value == scores["exact_match"].value == pytest.approx(open_share)
            assert scores["no_answer_f1"].value == 1
        else:
            assert scores["no_answer_f1"].value == 0
    assert list(records[0]) == ["id", "gold", "prediction", "score", "start", "end", "loss"]
    json.dumps(records)


def fake(task, gold, best, margin):
    """Predictions whose score of no answer is `margin` above that of the best part."""
    margin = np.array(margin, dtype=np.float64)
    ranked = qa.Ranked(np.zeros((len(gold), 1)), np.zeros((len(gold), 1), int), np.zeros((len(gold), 1), int), margin)
    parts = [{"start": 0, "end": len(text), "answer": text} for text in best]
    return Predictions(
        list(map(str, range(len(gold)))), np.zeros(len(gold)), {"gold": gold, "ranked": ranked, "best": parts}
    )


@pytest.mark.parametrize(
    ("margins", "gold", "expected"),
    [
        ([1.0, 1.0], [["yes"], []], 0.0),  # the sum of the gains is highest between the two, where no threshold is
        ([-2.0, 1.0, 1.0, 3.0], [[], ["yes"], [], ["yes"]], -3.0),
        ([np.nan, np.nan], [["yes"], []], 0.0),
    ],
)
def test_equal_margins_are_not_told_apart_by_a_threshold(margins, gold, expected):
    count = len(margins)
    zeros = np.zeros((count, 1))
    ranked = qa.Ranked(zeros, zeros.astype(int), zeros.astype(int), np.array(margins))
    assert best_threshold(gold, ["yes"] * count, ranked) == expected


def test_the_threshold_is_the_best_of_all(ready):
    generator = np.random.default_rng(0)
    for _ in range(8):
        gold = [["rome"] if one else [] for one in generator.random(12) < 0.6]
        best = ["rome" if one else "lima" for one in generator.random(12) < 0.7]
        predictions = fake(ready.task, gold, best, generator.normal(size=12) * 3)
        ready.task.tune(predictions)
        chosen = ready.task.threshold
        values = {}
        margins = np.sort(predictions.arrays["ranked"].null)
        for threshold in [chosen, margins[0] - 1, *(margins[:-1] + np.diff(margins) / 2), margins[-1] + 1]:
            ready.task.threshold = threshold
            answers = [one["answer"] for one in ready.task._answers(predictions)]
            values[threshold] = np.mean([(a in g) if g else a == "" for a, g in zip(answers, gold, strict=True)])
        assert values[chosen] == max(values.values())


def test_a_threshold_of_0_is_kept_where_none_is_better(ready):
    ready.task.tune(fake(ready.task, [["rome"], []], ["rome", "lima"], [-1.0, 19.0]))
    assert ready.task.threshold == 0.0
    ready.task.tune(fake(ready.task, [["rome"], []], ["rome", "lima"], [4.0, 6.0]))
    assert ready.task.threshold == 5.0
    ready.task.tune(fake(ready.task, [["rome"], []], ["lima", "lima"], [-3.0, 2.0]))
    assert ready.task.threshold == 0.0, "nothing is won by giving no answer below -3"


def test_the_threshold_stays_where_nothing_can_be_learned(ready, tmp_path, encoder):
    ready.task.tune(fake(ready.task, [["rome"]], ["rome"], [5.0]))
    assert ready.task.threshold == 0.0
    folder = tmp_path / "closed"
    folder.mkdir()
    closed = preparation.prepare(load(span_material.write_recipe(folder, encoder, open_share=0)), Events())
    closed.task.tune(fake(closed.task, [["rome"], []], ["rome", "lima"], [-5.0, 5.0]))
    assert closed.task.threshold is None
    assert closed.task.score(fake(closed.task, [["rome"]], ["rome"], [5.0]), ["f1"])["f1"].value == 1


def test_baselines_name_the_sentence_or_nothing(ready):
    found = ready.task.baselines(ready.splits)
    test = span_material.rows(12, 2)
    assert found["no_answer"]["test"].metrics["f1"].value == pytest.approx(
        np.mean([row["is_impossible"] for row in test])
    )
    assert 0 < found["nearest_sentence"]["test"].metrics["has_answer_f1"].value < 1
    assert found["nearest_sentence"]["test"].metrics["exact_match"].value == 0


# ---------------------------------------- what is saved


def test_config_holds_the_rules_and_our_pipeline_whatever_the_checkpoint_had(ready, tmp_path):
    config = span_material.config(num_labels=5)
    config.custom_pipelines = {"question-answering": {"impl": "evil.Pipe", "pt": []}}
    ready.task.threshold = 1.5
    net = span_material.model()
    net.config.custom_pipelines = config.custom_pipelines
    model.export(net, ready.tokenizer, ready.task, tmp_path / "export", base=None)
    model.write_config(net.config, ready.task, tmp_path / "export")
    stored = json.loads((tmp_path / "export/config.json").read_text())
    assert stored["custom_pipelines"]["question-answering"]["impl"] == "question_answering.QuestionAnsweringPipeline"
    assert stored["question_answering"]["no_answer_threshold"] == 1.5
    assert stored["question_answering"]["max_length"] == ready.task.max_length
    assert (tmp_path / "export/question_answering.py").read_bytes() == Path(qa.__file__).read_bytes()
    other = SpanTask(ready.recipe, impossible=True)
    other.adopt(SimpleNamespace(**stored))
    assert other.threshold == 1.5


def test_a_classifier_of_five_classes_gets_two_outputs(tmp_path, ready):
    from transformers import BertForSequenceClassification

    BertForSequenceClassification(span_material.config(num_labels=5)).save_pretrained(tmp_path / "five")
    span_material.wordpiece().save_pretrained(tmp_path / "five")
    checkpoint = pretrained.locate(str(tmp_path / "five"))
    config = pretrained.read_config(checkpoint, SpanTask)
    loaded = model.load_for_training(checkpoint, config, ready.task, ready.recipe)
    assert loaded.model.qa_outputs.out_features == 2
    assert loaded.head_swap.new.names == ["qa_outputs.bias", "qa_outputs.weight"]


def test_the_head_of_a_question_answering_checkpoint_is_renewed_or_kept(tmp_path, ready, encoder):
    folder = tmp_path / "qa"
    trained = span_material.model()
    with torch.no_grad():
        trained.qa_outputs.weight += 1.0
    trained.save_pretrained(folder)
    span_material.wordpiece().save_pretrained(folder)
    for number, (key, kept) in enumerate((("", False), ("  keep_head: true\n", True))):
        place = tmp_path / f"run{number}"
        place.mkdir()
        ready = preparation.prepare(load(span_material.write_recipe(place, folder, model=key)), Events())
        loaded = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
        assert torch.equal(loaded.model.qa_outputs.weight, trained.qa_outputs.weight) is kept
        assert ("qa_outputs.weight" in loaded.head_swap.new.names) is not kept


def test_a_model_of_another_origin_may_leave_questions_open_where_the_data_does(tmp_path, encoder):
    recipe = load(span_material.write_recipe(tmp_path, encoder))
    task = SpanTask.from_rows(recipe, preparation.prepare(recipe, Events()).splits)
    task.adopt(SimpleNamespace())
    assert task.threshold == 0.0


# ---------------------------------------- a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, encoder):
    """A run folder with LoRA, trained, exported and verified in a fresh process; its record and its recipe."""
    folder = tmp_path_factory.mktemp("span")
    path = span_material.write_recipe(folder, encoder, model="  lora: {r: 4, alpha: 8, dropout: 0.0}\n")
    recipe = finetune.load_recipe(path)
    return folder / "out", run.train(recipe), recipe


def test_the_run_ends_verified_with_a_card_that_says_how_to_call_it(finished):
    folder, record, _ = finished
    assert record.status == "finished"
    assert record.export.verified
    assert RunRecord.read(folder / "run.json").results["test"].metrics.keys() >= {"exact_match", "f1", "loss"}
    names = {path.name for path in (folder / "export").iterdir()}
    assert {"question_answering.py", "model.safetensors", "adapter", "README.md"} <= names
    card = (folder / "export/README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: question-answering" in card
    assert 'pipeline("question-answering", model="path/to/export", trust_remote_code=True)' in card
    assert "finetune.pipeline(" in card
    assert "transformers 5 has no pipeline for question answering" in card
    assert "## Labels" not in card


def test_predict_uses_the_installed_module_and_runs_nothing_of_the_folder(finished, tmp_path):
    import shutil

    folder = tmp_path / "hostile"
    shutil.copytree(finished[0] / "export", folder)
    (folder / "question_answering.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError\n")
    line = {"question": "where does anna live?", "context": "anna lives in paris.", "id": 7}
    [found] = prediction.predict_lines(str(folder), [json.dumps(line)])
    assert found["id"] == 7
    assert list(found["prediction"]) == ["score", "start", "end", "answer"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "who?"}, "line 2: expected a text under context, found the keys question"),
        ({"question": "  ", "context": "a"}, "line 2: the question is empty"),
    ],
)
def test_predict_names_the_line_it_cannot_use(finished, line, message):
    good = {"question": "who?", "context": "anna"}
    with pytest.raises(DataError, match=message):
        list(prediction.predict_lines(str(finished[0] / "export"), [json.dumps(good), json.dumps(line)]))


def test_evaluating_the_export_gives_the_stored_results(finished):
    folder, record, recipe = finished
    again = finetune.evaluate(recipe, str(folder / "export"), split="test")
    for name, metric in record.results["test"].metrics.items():
        assert again.results["test"].metrics[name].value == pytest.approx(metric.value, abs=1e-5), name


def test_the_merged_weights_are_base_and_adapter(finished, encoder):
    from peft import PeftModel
    from transformers import AutoModelForQuestionAnswering

    export = finished[0] / "export"
    base = AutoModelForQuestionAnswering.from_pretrained(encoder)
    adapted = PeftModel.from_pretrained(base, export / "adapter").eval()
    merged = AutoModelForQuestionAnswering.from_pretrained(export).eval()
    ids = torch.arange(5, 29)[None, :]
    with torch.no_grad():
        ours, theirs = merged(ids), adapted(ids)
    torch.testing.assert_close(ours.start_logits, theirs.start_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.end_logits, theirs.end_logits, rtol=0, atol=1e-5)


def test_the_note_tells_where_questions_are_cut(ready):
    ready.task.max_length, ready.task.stride = 32, 8
    assert any("questions are cut at 14 tokens" in note for note in ready.task.notes())
    for words in (14, 15):
        batch = {"question": ["who " * words], "context": [CONTEXT], "answers": [answer("quito", 145)], "id": ["0"]}
        assert ready.task.encode(batch, ready.tokenizer)["truncated"].all() == (words > 14)


def test_training_teaches_where_people_live(tmp_path, encoder):
    path = span_material.write_recipe(tmp_path, encoder, sizes=(256, 48, 1), open_share=0, max_steps=150, batch_size=32)
    ready = preparation.prepare(load(path), Events())
    loaded = model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
    net, features = loaded.model, ready.features["train"]
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    draw = np.random.default_rng(0)
    for _ in range(150):
        batch = ready.task.collate(features, draw.integers(0, len(features), 32), ready.tokenizer)
        (ready.task.loss(net(**batch.inputs), batch) / 32).backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    outputs = loop.predict_here(net, ready.task, ready.features["validation"], ready.tokenizer, torch.device("cpu"))
    predictions = ready.task.decode(outputs, ready.features["validation"], ready.splits["validation"])
    found = evaluation.score_split(ready.task, predictions, ["exact_match"]).metrics["exact_match"]
    assert found.value > 0.35
