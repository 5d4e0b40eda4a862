"""Two processes: what happens to one of them is known to both, and loses nothing."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
import tiny_export
import tiny_run
import torch
import transformers

from finetune import heartbeat
from finetune.heartbeat import Sign, Watch
from finetune.record import RunRecord

ROOT = Path(__file__).parents[1]
SETTINGS = {"epochs": 8, "save_every": 4, "micro_batch_size": 2}
TEXT = "evaluate: {every: 32}\n"


def recipe(folder, checkpoint, text=""):
    folder.mkdir()
    return tiny_run.write_recipe(folder, checkpoint, TEXT + text, **SETTINGS)


def record(path):
    return RunRecord.read(path.parent / "out" / "run.json")


def outcome(path):
    """What must not depend on how often a run was stopped."""
    out = path.parent / "out"
    stored = json.loads((out / "run.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = {k: v["sha256"] for k, v in stored["export"]["files"].items() if k.endswith(".safetensors")}
    manifest = json.loads((max((out / "checkpoints").glob("step-*")) / "MANIFEST.json").read_text())
    tensors = {k: v["sha256"] for k, v in manifest["files"].items() if k.endswith(".safetensors")}
    metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return weights, tensors, metrics, stored["results"], stored["training"]["sample_log_sha256"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_checkpoint):
    """A run of two processes to its end."""
    folder = tmp_path_factory.mktemp("processes")
    path = recipe(folder / "whole", tiny_checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(folder / "cache"))
        codes, errors = processes.train(path)
    assert codes == [0, 0], errors
    return path


def die(rank):
    if rank == 1:
        processes.at_step(7, lambda: os.kill(os.getpid(), signal.SIGKILL))


def be_asked_to_stop(rank):
    if rank == 1:
        processes.at_step(10, lambda: os.kill(os.getpid(), signal.SIGTERM))


def be_asked_in_the_last_evaluation(rank):
    from finetune import finish

    if rank == 1:
        processes.before(finish, "_predictions", lambda *_: os.kill(os.getpid(), signal.SIGINT))


def be_asked_when_the_other_has_left(rank):
    from finetune import finish

    processes.before(finish, "_results", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))


def test_whatever_stops_it_the_run_ends_as_if_nothing_had_happened(whole, tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "cut", tiny_checkpoint)
    codes, errors = processes.train(path, die)
    assert codes == [1, -signal.SIGKILL]
    assert "process 1 is gone: not heard for 3 s, last seen at " in errors[0]
    assert "Traceback" not in errors[0]
    assert (record(path).status, record(path).exit_code) == ("failed", 1)
    assert "process 1 is gone" in record(path).error
    for fault, expected, said in (
        (be_asked_to_stop, [75, 75], "stopped at step 10 of 64 (SIGTERM)"),
        (be_asked_in_the_last_evaluation, [75, 75], "stopped (SIGINT)"),
        (be_asked_when_the_other_has_left, [75, 0], "stopped (SIGUSR1)"),
    ):
        codes, errors = processes.train(path, fault)
        assert codes == expected, errors
        assert errors[0] == f"{said}; the same command continues\n"
        assert (record(path).status, record(path).exit_code) == ("pre-empted", 75)
    codes, errors = processes.train(path)
    assert codes == [0, 0], errors
    assert outcome(path) == outcome(whole)
    assert record(path).training.resumed_from == [4, 10, 64]
    codes, errors = processes.train(path)  # finished: nothing to train, on all processes
    assert codes == [0, 0], errors


def launch(path):
    """The run as a user starts it: the launcher, its two processes and their stderr."""
    arguments = ["--config_file", str(ROOT / "configs" / "cpu.yaml"), "-m", "finetune", "train", str(path), "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.timeout(900)  # three starts of a launcher, one after the other
def test_the_launcher_is_stopped_and_killed_and_nothing_is_lost(whole, tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "cut", tiny_checkpoint)
    checkpoints = path.parent / "out" / "checkpoints"
    for number, why in ((signal.SIGTERM, "SIGTERM"), (signal.SIGKILL, "the launcher died")):
        begun = set(checkpoints.glob("step-*"))
        launcher = launch(path)
        end = time.monotonic() + 240
        while set(checkpoints.glob("step-*")) <= begun:
            assert launcher.poll() is None, launcher.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        launcher.send_signal(number)  # to it alone
        _, errors = launcher.communicate(timeout=240)  # until its processes have closed stderr, too
        assert launcher.returncode != 0
        assert (record(path).status, record(path).exit_code) == ("pre-empted", 75), errors
        assert f"({why}); the same command continues" in record(path).error
    launcher = launch(path)
    _, errors = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, errors
    assert len(record(path).training.resumed_from) == 2
    assert record(path).export.verified
    assert outcome(path) == outcome(whole)


def test_another_number_of_processes_keeps_the_rows_and_the_loss(tmp_path):
    encoder = tiny_run.save_encoder(tmp_path / "nodrop", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    found = []
    for name, starts in (("one", [(1, None)]), ("two", [(2, be_asked_to_stop), (1, None)])):
        folder = tmp_path / name
        folder.mkdir()
        path = tiny_run.write_recipe(folder, encoder, "evaluate: {every: 4}\n", epochs=2, learning_rate=1.0e-4)
        for count, fault in starts:
            codes, errors = processes.train(path, fault, count)
            assert codes == [0 if fault is None else 75] * count, errors
        lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
        found.append((record(path), [json.loads(line) for line in lines]))
    (one, lines_of_one), (two, lines_of_two) = found
    assert (one.training.inexact, two.training.inexact) == ([], ["world 2->1 at step 10"])
    assert one.training.sample_log_sha256 == two.training.sample_log_sha256
    assert two.results["test"].n == 20
    assert [line["step"] for line in lines_of_one] == [line["step"] for line in lines_of_two]
    for line, other in zip(lines_of_one, lines_of_two, strict=True):
        for name, value in line["values"].items():
            assert value == pytest.approx(other["values"][name], abs=2e-5), (line["step"], name)


def have_services_that_hang(rank):
    """W&B's server accepts and never answers (see the test); a tool that CodeCarbon starts never ends."""
    from finetune import run
    from finetune.carbon import Carbon
    from finetune.tracking import Tracking

    run.Carbon = functools.partial(Carbon, deadline_seconds=1.0)
    run.Tracking = functools.partial(Tracking, patience_seconds=2.0, finish_seconds=40.0)


def test_weights_without_a_gradient_keep_nobody_waiting(tmp_path):
    torch.manual_seed(0)
    sizes = tiny_run.config().to_dict() | {"model_type": "luke", "entity_vocab_size": 4, "entity_emb_size": 8}
    transformers.LukeModel(transformers.LukeConfig(**sizes)).save_pretrained(tmp_path / "luke")
    tiny_export.tokenizer().save_pretrained(tmp_path / "luke")
    path = recipe(tmp_path / "run", tmp_path / "luke")
    codes, errors = processes.train(path)
    assert codes == [0, 0], errors


def test_services_that_hang_change_nothing(whole, tmp_path, tiny_checkpoint, monkeypatch):
    path = recipe(tmp_path / "run", tiny_checkpoint, "track: {wandb: {project: demo, mode: online}}\n")
    tool = tmp_path / "bin" / "lscpu"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexec sleep 600\n")
    tool.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "c0ffee" * 6 + "babe")
        monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
        codes, errors = processes.train(path, have_services_that_hang, seconds=200)
    assert codes == [0, 0], errors
    assert record(path).emissions.kwh is None
    assert record(path).emissions.reason == "CodeCarbon did not start within 1 s"
    assert record(path).tracking["wandb"].mode == "offline", (record(path).tracking, errors)
    assert outcome(path) == outcome(whole)


def hang(rank):
    from finetune import heartbeat

    # Less, and a step that is only slow, on a machine with much else to do, counts as one that hangs.
    heartbeat.BEAT_SECONDS, heartbeat.STEP_SECONDS = 0.1, 4.0
    if rank == 1:
        processes.at_step(5, lambda: time.sleep(600))


def test_one_that_hangs_is_named_and_all_end(tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "run", tiny_checkpoint)
    codes, errors = processes.train(path, hang, seconds=150)
    assert codes == [1, 1]
    assert "process 1 has not got past step 5 for" in errors[0]
    assert "process 1 has not got past step 5 for" in record(path).error
    assert record(path).exit_code == 1


def be_slow(rank):
    """A checkpoint that takes longer than a step may, and an evaluation longer than is waited for one move."""
    from finetune import batching, callbacks, heartbeat, loop

    heartbeat.BEAT_SECONDS, heartbeat.STEP_SECONDS, heartbeat.PHASE_SECONDS = 0.1, 3.0, 7.0
    outputs, slow = loop._outputs, {"save": 5.0, "evaluation": 3.0 if rank == 1 else 0.0}

    def sleep_once(*_):
        time.sleep(slow.pop("save", 0.0))

    def slowed(*arguments, **keywords):
        seconds = slow.pop("evaluation", 0.0)
        for found in outputs(*arguments, **keywords):
            time.sleep(seconds)
            yield found

    processes.before(callbacks.checkpoint, "save", sleep_once)
    loop._outputs = slowed
    loop.batching = SimpleNamespace(**{**vars(batching), "sorted_batches": in_twos})


def in_twos(lengths, *_):
    return np.split(np.arange(len(lengths)), range(2, len(lengths), 2))


def test_a_slow_disk_and_a_long_evaluation_are_no_hang(tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "run", tiny_checkpoint)
    codes, errors = processes.train(path, be_slow, seconds=150)
    assert codes == [0, 0], errors


def spoil_the_loss(rank):
    """On one process, from step 6 on; both say which weights have moved since that step began."""
    from finetune import loop

    fit = loop.fit

    def spoil():
        loss = loop._micro_loss
        loop._micro_loss = lambda run, index: loss(run, index) * float("nan")

    def watched(run):
        kept = {}
        processes.at_step(6, lambda: kept.update(weights(run)))
        if rank == 1:
            processes.at_step(6, spoil)
        try:
            fit(run)
        finally:
            moved = [name for name, value in weights(run).items() if not torch.equal(kept[name], value)]
            print("moved:", moved, file=sys.stderr)

    def weights(run):
        return loop.trainable_weights(run.accelerator.unwrap_model(run.model))

    loop.fit = watched


def test_nan_on_one_process_stops_both_before_the_step(tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "run", tiny_checkpoint)
    codes, errors = processes.train(path, spoil_the_loss)
    assert codes == [4, 4]
    assert "step 6: the gradient is NaN or infinite; no step was made" in errors[0]
    assert ["moved: []" in error for error in errors] == [True, True]
    assert record(path).exit_code == 4
    assert [folder.name for folder in (path.parent / "out" / "checkpoints").glob("step-*")] == ["step-00000004"]


def have_little_memory(rank):
    from finetune import loop

    loss = loop._micro_loss

    def small(run, index):
        if len(index) > 1:
            raise torch.OutOfMemoryError("injected")
        return loss(run, index)

    if rank == 1:
        loop._micro_loss = small
    stop_soon(rank)


def stop_soon(rank):
    processes.at_step(11, lambda: os.kill(os.getpid(), signal.SIGTERM))


def first_losses(folder, checkpoint, fault):
    """The logged loss of ten steps, and the rows of a micro-batch after them."""
    path = recipe(folder, checkpoint)
    codes, errors = processes.train(path, fault)
    assert codes == [75, 75], errors
    line = json.loads((path.parent / "out" / "metrics.jsonl").read_text().splitlines()[0])
    state = json.loads((path.parent / "out" / "checkpoints" / "step-00000011" / "state.json").read_text())
    assert line["step"] == 10
    return line["values"]["loss"], state["micro_rows"]


def test_one_without_memory_halves_the_micro_batch_of_both_and_keeps_the_gradient(tmp_path):
    encoder = tiny_run.save_encoder(tmp_path / "nodrop", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    loss, rows = first_losses(tmp_path / "much", encoder, stop_soon)
    loss_with_little, rows_with_little = first_losses(tmp_path / "little", encoder, have_little_memory)
    assert (rows, rows_with_little) == (2, 1)
    assert loss_with_little == pytest.approx(loss, abs=1e-6)


def fail(rank):
    def full():
        raise OSError("the data cannot be read")

    if rank == 1:
        processes.at_step(5, full)


def test_the_error_of_one_reaches_the_record_that_the_other_writes(tmp_path, tiny_checkpoint):
    path = recipe(tmp_path / "run", tiny_checkpoint)
    codes, errors = processes.train(path, fail)
    assert codes == [1, 1]
    assert "process 1 failed at step 5: the data cannot be read" in errors[0]
    assert "process 1 failed at step 5: the data cannot be read" in record(path).error


# ---------------------------------------- the judgement alone


def watched(history, processes=2):
    """The first problem over (seconds, signs) and when it was seen."""
    watch = Watch(processes, 0.0)
    for now, signs in history:
        watch.show(signs, now)
        if problem := watch.problem(now):
            return problem, now
    return None


def test_a_long_evaluation_on_one_process_is_no_hang():
    def signs(second):
        waiting = Sign(beats=second, moves=9, place="the evaluation after step 4")
        return [Sign(beats=second, moves=8, place="the evaluation after step 4"), waiting]

    assert watched((second, signs(second)) for second in range(590)) is None
    problem, when = watched((second, signs(second)) for second in range(1000))
    assert problem.startswith("process 0 has not got past the evaluation after step 4 for 600 s")
    assert 600 <= when <= 602


def test_one_that_waited_for_another_is_no_hang_once_it_is_passed():
    def signs(second, until):
        """Process 0 saves for 100 s, and its next move is seen before that of process 1, which stands `until` then."""
        first = Sign(second, 8 if second < 100 else 11 + second, "the checkpoint of step 4", 600.0)
        return [first, Sign(second, 10 if second < until else 11 + second, "step 5", 60.0)]

    assert watched((second, signs(second, 101)) for second in range(300)) is None
    problem, when = watched((second, signs(second, 1000)) for second in range(300))
    assert problem.startswith("process 1 has not got past step 5 for 60 s")
    assert 159 <= when <= 161


def test_one_that_is_not_heard_any_more_is_gone():
    signs = ((second, [Sign(second, 5), Sign(min(second, 20), 5, "step 3")]) for second in range(200))
    assert watched(signs) == ("process 1 is gone: not heard for 60 s, last seen at step 3", 80)


def test_all_waiting_for_each_other_is_a_hang_too():
    signs = ((second, [Sign(second, 5, "step 3", 60)] * 2) for second in range(200))
    problem, when = watched(signs)
    assert problem == "no process has got past step 3 for 60 s"
    assert 60 <= when <= 62


def test_who_has_left_keeps_nobody_waiting():
    signs = ((second, [Sign(second, 5), Sign(min(second, 3), 9, left="")]) for second in range(5000))
    assert watched(signs) is None


def test_a_step_may_take_ten_times_as_long_as_one_before_a_checkpoint(monkeypatch):
    clock = iter([0.0, 0.0, 8.0, 10.0])
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    heart = heartbeat.Heartbeat()
    heart.step(1)
    heart.phase("the checkpoint of step 1")
    assert heart._patience == heartbeat.PHASE_SECONDS
    heart.step(2)
    assert heart._patience == 80.0
