"""From a recipe to a folder that `pipeline` loads; stopped and continued; refused; on two processes."""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import tiny_run
import torch
import transformers

import finetune
from finetune import checking, model, run
from finetune.errors import OutputError, RecipeError
from finetune.events import Events
from finetune.folder import RunFolder
from finetune.record import Published, RunRecord

ROOT = Path(__file__).parents[1]


def recipe(folder, checkpoint, text="carbon: {country: FRA}\n", **train):
    folder.mkdir(exist_ok=True)
    return tiny_run.write_recipe(folder, checkpoint, text, **train)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_checkpoint):
    """The folder of a finished run and its record."""
    folder = tmp_path_factory.mktemp("finished")
    path = recipe(folder, tiny_checkpoint, epochs=8, learning_rate=3.0e-3)
    os.environ["FINETUNE_CACHE"] = str(folder / "cache")
    messages, connections = [], []

    def refuse(*arguments, **_):
        connections.append(arguments)
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        record = run.train(finetune.load_recipe(path), events=Events(message=messages.append))
    assert connections == [], "local files need no network"
    return folder / "out", record, messages


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_run_folder_is_that_of_the_contract(finished):
    folder, record, _ = finished
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "report.html",
        "hard_rows.jsonl",
        "predictions",
        "checkpoints",
        "emissions.csv",
        "export",
        "verification.jsonl",
    }
    assert RunRecord.read(folder / "run.json") == record
    stored = json.loads((folder / "run.json").read_text())
    assert (stored["format"], stored["status"], stored["exit_code"]) == (1, "finished", 0)
    assert stored["data"]["train"]["rows"] == 60
    assert stored["training"]["steps"] == 64
    assert stored["training"]["examples"] == 480
    assert stored["results"]["test"]["n"] == 20
    assert set(stored["results"]["test"]["accuracy"]) == {"value", "low", "high"}
    assert stored["export"]["verified"] is True
    assert stored["emissions"]["kwh"] > 0
    phases = set(stored["emissions"]["phases"])  # one that was too short for CodeCarbon to measure is left out
    assert phases
    assert phases <= {"train", "evaluate"}


def test_predictions_hold_every_row_once_with_its_gold_label(finished):
    folder, record, _ = finished
    found = lines(folder / "predictions" / "test.jsonl")
    assert [line["id"] for line in found] == [str(number) for number in range(20)]
    assert [line["gold"] for line in found] == [label for _, label in tiny_run.sentences(20, seed=2)]
    share = sum(line["gold"] == line["prediction"] for line in found) / 20
    assert share == pytest.approx(record.results["test"].metrics["accuracy"].value)


def test_it_says_where_it_fails_and_stores_the_temperature(finished):
    folder, record, _ = finished
    assert set(record.analysis) == {"validation", "test"}
    found = record.analysis["test"]
    assert sum(map(sum, found.confusion.counts)) == found.calibration.n == 20
    assert {one.by for one in found.slices} == {"label", "length"}
    assert found.behaviour == []
    temperature = found.calibration.temperature
    config = json.loads((folder / "export" / "config.json").read_text())
    assert config.get("calibration_temperature") == (None if temperature is None else round(temperature.value, 4))
    assert "## Where it fails" in (folder / "export" / "README.md").read_text()


def test_it_learned_and_says_what_it_reused(finished):
    _, record, messages = finished
    assert record.results["test"].metrics["accuracy"].value > 0.7
    assert record.head_swap.new.names == ["classifier.bias", "classifier.weight"]
    assert any(message.startswith("head swap: ") for message in messages)


def test_metrics_log_has_steps_epochs_and_both_splits(finished):
    folder, record, _ = finished
    found = lines(folder / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in found][:4] == [
        (8, "validation"), (10, "train"), (16, "validation"), (20, "train"),
    ]  # fmt: skip
    assert found[0]["epoch"] == 1.0
    assert found[-1]["tokens"] == record.training.tokens
    best = max(line["values"]["accuracy"] for line in found if line["split"] == "validation")
    assert record.best.value == best


def test_a_stranger_and_our_own_pipeline_give_the_same_answers(finished):
    folder, _, _ = finished
    text = "the film was very good"
    ours = finetune.pipeline(folder / "export")(text, truncation=True)
    program = (
        "import sys, json\nfrom transformers import pipeline\n"
        "print(json.dumps(pipeline('text-classification', model=sys.argv[1])(sys.argv[2], truncation=True)))"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, str(folder / "export"), text], capture_output=True, text=True, check=True
    )
    theirs = json.loads(ended.stdout.splitlines()[-1])
    assert theirs[0]["label"] == ours[0]["label"]
    assert theirs[0]["score"] == pytest.approx(ours[0]["score"], abs=1e-6)


def test_evaluating_the_export_gives_the_results_of_the_run(finished):
    folder, record, _ = finished
    found = finetune.evaluate(finetune.load_recipe(folder / "recipe.yaml", [f"output={folder}"]), folder / "export")
    ours, theirs = found.results["test"].metrics["accuracy"], record.results["test"].metrics["accuracy"]
    assert ours == theirs
    assert [path.name for path in (folder / "evaluations").iterdir()]


def test_a_repository_that_none_can_be_is_refused_before_anything_is_done(finished, tmp_path):
    whole, record, _ = finished
    folder = shutil.copytree(whole, tmp_path / "run")
    messages = []
    with pytest.raises(RecipeError, match=r"hub.repo_id: expected NAMESPACE/NAME, found 'bad'"):
        run.push(folder, repo_id="bad", events=Events(message=messages.append))
    assert messages == []
    assert RunRecord.read(folder / "run.json").status == record.status


def test_a_finished_run_says_so_and_trains_nothing(finished):
    folder, record, _ = finished
    messages = []
    again = run.train(finetune.load_recipe(folder.parent / "recipe.yaml"), events=Events(message=messages.append))
    assert again.training == record.training
    assert messages == [f"{folder}: this run is finished already; nothing to train"]


def test_a_verification_that_a_kill_cut_off_is_made_up_for(finished):
    folder, record, _ = finished
    cut = record.model_copy(deep=True)
    cut.export.verified = False
    cut.write(folder / "run.json")
    again = run.train(finetune.load_recipe(folder.parent / "recipe.yaml"))
    assert again.export.verified
    assert RunRecord.read(folder / "run.json").export.verified


def test_another_recipe_in_the_same_folder_is_refused_with_the_keys(finished):
    folder, _, _ = finished
    changed = finetune.load_recipe(folder.parent / "recipe.yaml", ["train.learning_rate=0.5"])
    with pytest.raises(OutputError, match=r"train.learning_rate: was 0.003, is 0.5"):
        run.train(changed)


def test_a_run_goes_on_with_the_rows_and_the_checkpoint_it_was_begun_with(tmp_path, tiny_checkpoint, monkeypatch):
    own = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (own / "vocab.txt").write_text("good\n")
    path = recipe(tmp_path, own, epochs=1)
    record = run.train(finetune.load_recipe(path))
    record.status = "running"  # as a kill leaves it
    record.write(tmp_path / "out" / "run.json")
    for name, old, new, key in (
        ("train.csv", "good", "bad", "data.splits.train"),
        ("model/config.json", '"dtype"', '"was"', "model.checkpoint"),
        ("model/vocab.txt", "good", "well", "model.checkpoint"),
    ):
        file = tmp_path / name
        before = file.read_text()
        assert old in before
        file.write_text(before.replace(old, new))
        with pytest.raises(OutputError, match=f"begun with another content of {key}; put the files back"):
            run.train(finetune.load_recipe(path))
        file.write_text(before)
    (own / "notes.txt").write_text("beside the model, not of it")
    versions = run.hardware.versions()
    monkeypatch.setattr(run.hardware, "versions", lambda: versions | {"torch": "3.0"})
    again = run.train(finetune.load_recipe(path))
    assert (again.status, again.training.steps) == ("finished", record.training.steps)
    assert again.training.inexact == [f"torch {versions['torch']}->3.0 at step {record.training.steps}"]


def test_a_commit_may_be_named_afterwards_but_not_another_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: sequence\nmodel: {checkpoint: me/model}\ndata: {path: me/set, columns: {text: a, label: b}}\n"
        "train: {}\noutput: out\n"
    )
    folder = RunFolder(tmp_path / "out")
    folder.probe()
    RunRecord().write(folder.record)
    (folder.checkpoints / "step-00000001").mkdir(parents=True)
    folder.write_recipe(finetune.load_recipe(path), {})
    first = finetune.load_recipe(path, ["data.revision=abc"])
    assert folder.earlier(first) == RunRecord()
    folder.write_recipe(first, {})
    with pytest.raises(OutputError, match=r"data.revision: was 'abc', is 'def'"):
        folder.earlier(finetune.load_recipe(path, ["data.revision=def"]))


def test_what_a_whole_run_does_not_heed_is_named(finished):
    folder, _, _ = finished
    messages = []
    changes = ["card.license=mit", "evaluate.metrics=[accuracy]"]
    run.train(finetune.load_recipe(folder.parent / "recipe.yaml", changes), events=Events(message=messages.append))
    assert messages[1].startswith("card.license, evaluate.metrics: changed, without effect on a run that is whole;")


def test_a_whole_run_is_pushed_until_the_hub_has_it_verified(finished, tmp_path, monkeypatch):
    copy = shutil.copytree(finished[0].parent, tmp_path / "copy")
    arguments = (copy / "recipe.yaml", [f"output={copy / 'out'}", "hub.repo_id=me/x", "card.license=mit"])
    pushes, messages = [], []

    def push(recipe, folder, record, events):
        pushes.append(recipe.hub.repo_id)
        verified = len(pushes) > 1
        record.published = Published(repo_id=recipe.hub.repo_id, commit="abc", verified=verified)
        record.status = "published" if verified else "finished"

    monkeypatch.setattr(run.finish, "push", push)
    for _ in range(3):
        run.train(finetune.load_recipe(*arguments), events=Events(message=messages.append))
    assert pushes == ["me/x", "me/x"]
    assert not [line for line in messages if "without effect" in line]


def test_checkpoints_without_a_record_belong_to_the_recipe_beside_them(finished, tmp_path):
    copy = shutil.copytree(finished[0].parent, tmp_path / "copy")
    (copy / "out" / "run.json").unlink()
    at = f"output={copy / 'out'}"
    with pytest.raises(OutputError, match=r"run of another recipe \(its checkpoints\)(.|\n)*train.seed: was"):
        checking.check(finetune.load_recipe(copy / "recipe.yaml", [at, "train.seed=9"]), Events())
    assert run.train(finetune.load_recipe(copy / "recipe.yaml", [at])).training.resumed_from


def test_resume_never_refuses_a_folder_with_a_run(finished):
    folder, _, _ = finished
    with pytest.raises(OutputError, match="holds a run"):
        run.train(finetune.load_recipe(folder.parent / "recipe.yaml"), resume="never")


def test_without_a_train_block_nothing_is_trained(finished):
    folder, _, _ = finished
    with pytest.raises(RecipeError, match="train: missing"):
        run.train(finetune.load_recipe(folder.parent / "recipe.yaml", ["train=null"]))


def command(path, *arguments):
    return [sys.executable, "-m", "finetune", "train", str(path), *arguments]


def start(arguments, folder, **environment):
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=os.environ | {"FINETUNE_CACHE": str(folder / "cache")} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def fingerprint(folder):
    """What must not depend on how often a run was stopped."""
    record = json.loads((folder / "out" / "run.json").read_text())
    metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in lines(folder / "out" / "metrics.jsonl")]
    weights = {
        name: file["sha256"] for name, file in record["export"]["files"].items() if name.endswith(".safetensors")
    }
    return weights, record["training"]["sample_log_sha256"], metrics, record["results"]


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]  # passes no signal on


@pytest.mark.timeout(600)  # four starts, one after the other
def test_stopped_by_signals_and_killed_it_ends_as_if_never_stopped(tmp_path, tiny_checkpoint):
    settings = {"epochs": 30, "save_every": 3, "micro_batch_size": 3}
    whole = recipe(tmp_path / "whole", tiny_checkpoint, "evaluate: {every: 40}\n", **settings)
    codes, errors = processes.train(whole, count=1)
    assert codes == [0], errors
    path = recipe(tmp_path / "cut", tiny_checkpoint, "evaluate: {every: 40}\n", **settings)
    out, codes = path.parent / "out", []
    launched = [*LAUNCH, *command(path, "--quiet")[1:]]
    for arguments, number in (
        (launched, signal.SIGTERM),
        (command(path, "--quiet"), signal.SIGKILL),
        (command(path, "--quiet"), signal.SIGUSR1),
    ):
        process = start(arguments, tmp_path)
        known = len(codes) * 30
        wait_for(lambda known=known: newest(out) > known, process)
        os.kill(process.pid, number)
        codes.append(finish(process)[0])
        stopped = RunRecord.read(out / "run.json")
        assert (stopped.status, stopped.exit_code) == (
            ("running", None) if number == signal.SIGKILL else ("pre-empted", 75)
        )
    assert codes == [-signal.SIGTERM, -signal.SIGKILL, 75]
    code, errors = finish(start(command(path, "--quiet"), tmp_path))
    assert code == 0, errors
    assert fingerprint(path.parent) == fingerprint(whole.parent)
    assert len(RunRecord.read(out / "run.json").training.resumed_from) == 3
    steps = [line["step"] for line in lines(out / "metrics.jsonl") if line["split"] == "train"]
    assert steps == sorted(set(steps)), "a curve without gaps or steps back"
    assert "Dotted lines mark the steps at which the run was continued" in (out / "report.html").read_text()


def newest(out):
    return max((int(path.name[-8:]) for path in (out / "checkpoints").glob("step-*")), default=0)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_two_runs_in_one_folder(tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "run", tiny_checkpoint, epochs=400, save_every=5)
    first = start(command(path, "--quiet"), tmp_path)
    try:
        wait_for(lambda: newest(path.parent / "out") > 0, first)
        code, errors = finish(start(command(path, "--quiet"), tmp_path))
        assert code == 2
        assert f"is used by another run (process {first.pid} on" in errors
    finally:
        first.kill()
        first.communicate()


def test_a_group_that_is_not_whole_is_refused(tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "run", tiny_checkpoint)
    code, errors = finish(start(command(path, "--quiet"), tmp_path, WORLD_SIZE="2"))
    assert code == 2
    assert "announced 2 processes (WORLD_SIZE), but 1 found each other" in errors


def test_the_trained_model_is_gone_when_its_export_is_loaded(tmp_path, tiny_checkpoint, monkeypatch):
    """Else the most memory is needed after the last step, and a run that trained is lost there."""
    before, alive, inner = held(), [], model.load_for_evaluation
    monkeypatch.setattr(model, "load_for_evaluation", lambda *given: alive.append(held()) or inner(*given))
    run.train(finetune.load_recipe(recipe(tmp_path / "run", tiny_checkpoint, epochs=1)))
    assert alive == [before]


def held():
    """How many models and optimizers there are in this process."""
    gc.collect()
    kinds = (transformers.PreTrainedModel, torch.optim.Optimizer)
    return sum(issubclass(type(one), kinds) for one in gc.get_objects())


def test_fp16_on_a_cpu_is_refused(tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "run", tiny_checkpoint, precision="fp16")
    with pytest.raises(RecipeError, match=r"train\.precision: fp16 needs a GPU"):
        run.train(finetune.load_recipe(path))
