"""`finetune evaluate` on checkpoints that others made: labels, adapters, storage formats, what it loads and tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import seq2seq_material
import tiny_export
import tiny_run

import finetune
from finetune import assessment, tasks
from finetune.errors import ModelError, OutputError, RecipeError
from finetune.record import RunRecord

ROOT = Path(__file__).parents[1]
GOLD = ("neg", "neu", "pos")
TEXTS = sorted({text for text, _ in tiny_run.sentences(90, seed=3)})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder as Trainer leaves it, whose labels are negative, neutral, positive."""
    from transformers import AutoModelForSequenceClassification

    folder = tiny_export.build(tmp_path_factory.mktemp("classifier"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    balance(model, model.classifier)
    model.save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"\x80\x04not read")
    return folder


@pytest.fixture(scope="module")
def rows(classifier):
    """Texts with what the classifier answers to them, by other names: it is always right."""
    from transformers import AutoModelForSequenceClassification

    answers = logits(AutoModelForSequenceClassification.from_pretrained(classifier)).argmax(-1).tolist()
    assert min(answers.count(number) for number in range(3)) > 10
    return [(text, GOLD[number]) for text, number in zip(TEXTS, answers, strict=True)]


def logits(model):
    import torch

    with torch.no_grad():
        return torch.cat([model(**tiny_export.tokenizer()(text, return_tensors="pt")).logits for text in TEXTS])


def balance(model, head) -> None:
    """Make a head of random weights give each of its classes to some of TEXTS."""
    import torch

    model.eval()
    with torch.no_grad():
        head.weight /= logits(model).std(dim=0)[:, None]
        head.bias -= logits(model).mean(dim=0)


def relabel(source: Path, folder: Path, names: list[str]) -> Path:
    """The same weights with other names for their outputs."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def recipe(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A recipe with a test split alone, and no train block."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_run.write_csv(folder / "test.csv", ("text", "label"), rows)
    path = folder / "recipe.yaml"
    path.write_text(
        "task: sequence\nmodel: {checkpoint: ./none}\ndata:\n  path: {test: ./test.csv}\n"
        f"  columns: {{text: text, label: label}}\n  max_length: 24\noutput: {folder}/out\n"
    )
    return path


def evaluate(path: Path, checkpoint: Path, **options) -> RunRecord:
    return assessment.evaluate(finetune.load_recipe(path), str(checkpoint), **options)


def accuracy(record: RunRecord) -> float:
    return record.results["test"].metrics["accuracy"].value


# ---------------------------------------- labels


def test_names_decide_whatever_their_order_case_and_prefix(tmp_path, classifier, rows):
    path = recipe(tmp_path, rows)
    named = relabel(classifier, tmp_path / "named", ["LABEL_Neg", "NEU", "pos"])
    record = evaluate(path, named)
    assert accuracy(record) == 1.0
    assert record.model.labels == ["neg", "neu", "pos"]
    assert record.warnings == []


def test_placeholders_are_refused_with_both_lists_and_a_mapping_to_paste(tmp_path, classifier, rows):
    path = recipe(tmp_path, rows)
    folder = relabel(classifier, tmp_path / "placeholders", ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(ModelError) as told:
        evaluate(path, folder)
    assert "its labels are LABEL_0, LABEL_1, LABEL_2; the data's are neg, neu, pos" in str(told.value)
    mapping = "LABEL_0=neg,LABEL_1=neu,LABEL_2=pos"
    assert f"--labels {mapping}, if that is their order" in str(told.value)
    pairs = dict(pair.split("=") for pair in mapping.split(","))
    assert accuracy(evaluate(path, folder, labels=pairs)) == 1.0


def test_exchanged_names_are_pointed_out_with_the_flag_that_undoes_it(tmp_path, classifier, rows):
    path = recipe(tmp_path, rows)
    folder = relabel(classifier, tmp_path / "exchanged", ["neu", "pos", "neg"])
    record = evaluate(path, folder)
    assert accuracy(record) == 0.0
    below, exchanged = record.warnings
    assert below.startswith("accuracy is 0.000, below the 0.")
    assert f"0 of {len(rows)} are right; were its labels exchanged, {len(rows)} would be" in exchanged
    flag = exchanged.rpartition("--labels ")[2]
    again = evaluate(path, folder, labels=dict(pair.split("=") for pair in flag.split(",")))
    assert accuracy(again) == 1.0
    assert again.warnings == []


def test_an_untrained_head_is_below_the_baseline_but_no_exchange_is_found(tmp_path, classifier, rows):
    draws = [(text, "pos" if number % 3 else "neg") for number, (text, _) in enumerate(rows)]
    names = relabel(classifier, tmp_path / "x", ["neg", "pos", "other"])
    record = evaluate(recipe(tmp_path, draws), names)
    assert [text.split(" is ")[0] for text in record.warnings] == ["accuracy"]
    assert "of always pos" in record.warnings[0]


# ---------------------------------------- how it is stored


def test_half_precision_weights_are_read_as_fp32(tmp_path, classifier, rows):
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = relabel(classifier, tmp_path / "half", list(GOLD))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    record = evaluate(recipe(tmp_path, rows), folder)
    assert accuracy(record) > 0.9
    full = (classifier / "model.safetensors").stat().st_size
    assert record.efficiency.size_bytes < 0.6 * full


def test_a_quantised_checkpoint_is_refused_with_what_to_do(tmp_path, classifier, rows):
    folder = relabel(classifier, tmp_path / "quantised", list(GOLD))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"quantised \(bitsandbytes\) and does not load here: .*install what is missing"
    ):
        evaluate(recipe(tmp_path, rows), folder)


def adapted(folder: Path, base: Path, **settings):
    """A model with a LoRA adapter with a head of three classes on the encoder at `base`, saved by PEFT."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    options = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"], "init_lora_weights": False}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options | settings)).eval()
    heads = getattr(model.classifier, "modules_to_save", None)
    balance(wrapped, heads["default"] if heads else model.classifier)
    wrapped.save_pretrained(folder)
    tiny_export.tokenizer().save_pretrained(folder)
    return wrapped


def test_an_adapter_is_merged_into_the_base_that_it_names(tmp_path, tiny_checkpoint):
    answers = logits(adapted(tmp_path / "adapter", tiny_checkpoint)).argmax(-1).tolist()
    assert len(set(answers)) == 3
    path = recipe(tmp_path, [(text, GOLD[number]) for text, number in zip(TEXTS, answers, strict=True)])
    names = {f"LABEL_{number}": name for number, name in enumerate(GOLD)}
    with pytest.raises(ModelError, match="--labels LABEL_0=neg,LABEL_1=neu,LABEL_2=pos"):
        evaluate(path, tmp_path / "adapter")
    record = evaluate(path, tmp_path / "adapter", labels=names)
    assert accuracy(record) == 1.0
    assert record.efficiency.size_bytes > (tiny_checkpoint / "model.safetensors").stat().st_size


def edit(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_adapters_that_cannot_be_used(tmp_path, tiny_checkpoint, rows):
    path, folder = recipe(tmp_path, rows), tmp_path / "adapter"
    adapted(folder, tiny_checkpoint)
    edit(folder, base_model_name_or_path="./gone")
    with pytest.raises(
        ModelError, match=r"an adapter of ./gone, which cannot be had; write .* base_model_name_or_path"
    ):
        evaluate(path, folder)
    edit(folder, base_model_name_or_path=None)
    with pytest.raises(ModelError, match=r"an adapter of ./none, which cannot be had"):  # the recipe's checkpoint
        evaluate(path, folder)
    with pytest.raises(ModelError, match=r"is a PEFT adapter without its base"):
        finetune.pipeline(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights \(.bin\) can run code"):
        evaluate(path, folder)


def test_a_checkpoint_that_is_none_or_cannot_write_is_named_by_its_option(tmp_path, classifier):
    """What training would do with it (give it a decoder, say) is no remedy here."""
    recipe = recipe_of(tmp_path, classifier, task="seq2seq")
    with pytest.raises(ModelError, match=r"^--checkpoint: \./nowhere is not a folder with a config\.json"):
        assessment.evaluate(recipe, "./nowhere")
    saved = "is saved as BertForSequenceClassification; it has no trained head for this task; fine-tune"
    with pytest.raises(ModelError, match=saved):
        assessment.evaluate(recipe, str(classifier))


def test_metrics_and_files_are_looked_at_before_the_model_runs(tmp_path, classifier, rows, monkeypatch):
    monkeypatch.setattr(assessment, "_predict", lambda *_: pytest.fail("the model ran"))
    path = recipe(tmp_path, rows)
    names = dict(zip(tiny_export.LABELS, GOLD, strict=True))
    with pytest.raises(RecipeError, match=r"evaluate\.metrics: 'Acuracy' is no metric of ours"):
        assessment.evaluate(finetune.load_recipe(path, ["evaluate.metrics=[Acuracy]"]), str(classifier), labels=names)
    (tmp_path / "test.csv").write_text("text,label\nfilm\n")
    with pytest.raises(ModelError) as caught:
        evaluate(path, tmp_path / "nowhere")
    assert len(str(caught.value).splitlines()) == 2
    assert "test.csv, line 2: expected 2 cells, found 1" in str(caught.value)


def test_what_it_cannot_use_or_write_is_told_before_the_model_runs(tmp_path, classifier, rows, monkeypatch):
    monkeypatch.setattr(assessment, "_predict", lambda *_: pytest.fail("the model ran"))
    path = recipe(tmp_path, rows)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        assessment.evaluate(finetune.load_recipe(path, [f"output={tmp_path}/file"]), str(classifier))
    export = shutil.copytree(classifier, tmp_path / "run" / "export")
    with pytest.raises(ModelError, match=f"did you mean {tmp_path}/run/export\\?"):
        evaluate(path, tmp_path / "run")
    for content, expected in (('{"model_type": "be', "cannot be read"), ("[1]", r"expected an object, found \[1\]")):
        (export / "config.json").write_text(content)
        with pytest.raises(ModelError, match=f"config.json of {export}:? {expected}"):
            evaluate(path, export)
        with pytest.raises(ModelError, match=f"config.json of {export}:? {expected}"):
            finetune.pipeline(export)


def test_long_names_that_end_alike_have_a_folder_each(tmp_path, classifier, rows):
    path = recipe(tmp_path, rows)
    named = relabel(classifier, tmp_path / "named", list(GOLD))
    for name in "ab":
        evaluate(path, shutil.copytree(named, tmp_path / name / ("long" * 20)))
    assert len(list((tmp_path / "out" / "evaluations").iterdir())) == 2


def test_labels_of_a_head_without_any_cannot_be_renamed(tmp_path):
    folder = seq2seq_material.save_family(tmp_path / "t5", "t5")
    path = seq2seq_material.write_recipe(tmp_path, folder, rows=(4, 4, 6))
    with pytest.raises(RecipeError, match="--labels: the model has no labels to be renamed"):
        assessment.evaluate(finetune.load_recipe(path), str(folder), labels={"a": "b"})


def recipe_of(folder, checkpoint, task):
    """A recipe whose data is never reached."""
    path = folder / "recipe.yaml"
    path.write_text(
        f"task: {task}\nmodel: {{checkpoint: {checkpoint}}}\ndata: {{path: ./none.jsonl}}\noutput: {folder}/out\n"
    )
    return finetune.load_recipe(path)


def test_an_adapter_without_a_head_is_refused(tmp_path, tiny_checkpoint, rows):
    adapted(tmp_path / "adapter", tiny_checkpoint, task_type="FEATURE_EXTRACTION")
    with pytest.raises(
        ModelError, match=r"neither the adapter nor its base has weights for .*the head would be random"
    ):
        evaluate(recipe(tmp_path, rows), tmp_path / "adapter")


def test_architectures_that_end_in_simple_are_question_answering():
    for name in ("XLNetForQuestionAnsweringSimple", "XLMForQuestionAnsweringSimple", "BertForQuestionAnswering"):
        assert tasks.for_architectures([name]).auto_class == "AutoModelForQuestionAnswering"


# ---------------------------------------- what it tells and what it loads


def test_the_record_tells_reading_and_cost(tmp_path, classifier, rows):
    folder = relabel(classifier, tmp_path / "named", list(GOLD))
    long = [*rows, ("film " * 100, "pos")]
    record = evaluate(recipe(tmp_path, long), folder)
    stored = RunRecord.read(next((tmp_path / "out" / "evaluations").glob("*/run.json")))
    assert stored == record
    assert (record.data["test"].rows, record.data["test"].truncated) == (len(long), 1)
    assert record.model.tokenizer == "TokenizersBackend, 14 tokens" or "14 tokens" in record.model.tokenizer
    assert record.model.max_length == 24
    found = record.efficiency
    assert found.parameters == record.model.parameters > 1000
    assert found.size_bytes == (folder / "model.safetensors").stat().st_size
    assert found.latency_rows == 50
    assert 0 < found.latency_p50_seconds <= found.latency_p95_seconds < 10
    assert found.rows_per_second > 0
    assert found.peak_memory_bytes > 50e6
    assert found.first_token_p50_seconds is None
    assert found.threads >= 1


def test_generated_tokens_are_timed(tmp_path):
    folder = seq2seq_material.save_family(tmp_path / "t5", "t5")
    path = seq2seq_material.write_recipe(tmp_path, folder, rows=(4, 4, 6))
    record = assessment.evaluate(finetune.load_recipe(path, ["train=null"]), str(folder))
    found = record.efficiency
    assert found.latency_rows == 6
    assert 0 < found.first_token_p50_seconds < found.latency_p50_seconds
    assert 0 < found.per_token_p50_seconds < found.latency_p50_seconds


@pytest.mark.parametrize("split", ["train", "validation"])
def test_any_split_is_scored_beside_what_needs_no_training(tmp_path, split):
    folder = seq2seq_material.save_family(tmp_path / "t5", "t5")
    path = seq2seq_material.write_recipe(tmp_path, folder, rows=(4, 4, 6))
    record = assessment.evaluate(finetune.load_recipe(path, ["train=null"]), str(folder), split=split)
    assert record.results.keys() == {split}
    assert record.baselines["copy_of_the_source"][split].n == 4


PROGRAM = """
import socket, sys

def refuse(*arguments, **options):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import finetune
record = finetune.evaluate(finetune.load_recipe(sys.argv[1]), sys.argv[2])
assert record.results["test"].n
print(*sorted({name.split(".")[0] for name in sys.modules} & {"peft", "wandb", "codecarbon", "tensorboard"}))
"""


def test_local_files_need_no_network_and_no_training_libraries(tmp_path, classifier, rows):
    folder = relabel(classifier, tmp_path / "named", list(GOLD))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(recipe(tmp_path, rows)), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_several_checkpoints_give_one_table_and_one_that_fails_does_not_take_the_others_along(
    tmp_path, classifier, rows, capsys, monkeypatch
):
    from finetune import cli

    good = [relabel(classifier, tmp_path / name, list(order)) for name, order in (("a", GOLD), ("b", GOLD[::-1]))]
    bad = relabel(classifier, tmp_path / "c", ["x", "y", "z"])
    options = [f"--checkpoint={folder}" for folder in (*good, bad)]
    arguments = ["finetune", "evaluate", str(recipe(tmp_path, rows)), *options, "--json", str(tmp_path / "all.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "its labels are x, y, z" in told.err
    assert "1.000 ±" in told.out
    assert "were its labels exchanged" in told.out
    stored = json.loads((tmp_path / "all.json").read_text())
    assert [one["model"]["checkpoint"] for one in stored] == [str(folder) for folder in good]
    assert stored[0]["efficiency"]["latency_rows"] == 50
