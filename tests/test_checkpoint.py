"""A checkpoint is complete or absent, verified before use, and exact."""

import json
import os
import resource
import shutil
import signal
import sys

import processes
import pytest
import torch

from finetune import checkpoint, hardware
from finetune.checkpoint import Progress, Snapshot
from finetune.errors import ResumeError, StorageError


def snapshot(step=1, value=1.0):
    weights = {"layer.weight": torch.full((4, 3), value), "layer.bias": torch.tensor([0.1, -0.0, 1e-30])}
    optimizer = {"layer.weight/exp_avg": torch.rand(4, 3), "layer.weight/step": torch.tensor(float(step))}
    progress = Progress(step=step, window_loss=0.1 + 0.2, carried={"chosen": {"precision": "bf16"}})
    return Snapshot(progress, weights, optimizer, {"layer.weight": torch.zeros(4, 3)})


def test_round_trip_is_bitwise(tmp_path):
    saved = snapshot(step=7)
    checkpoint.save(tmp_path, saved, keep_last=2)
    found, problems = checkpoint.latest(tmp_path)
    assert problems == []
    assert found.progress == saved.progress
    for group in ("weights", "optimizer", "best"):
        ours, theirs = getattr(found, group), getattr(saved, group)
        assert ours.keys() == theirs.keys()
        assert all(
            torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8))
            for name in ours
            if ours[name].ndim
        )


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "checkpoints") == (None, [])


def test_keeps_the_newest_and_removes_leftovers(tmp_path):
    (tmp_path / ".tmp-step-00000009-1").mkdir()
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, snapshot(step), keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


FILES = ["weights.safetensors", "optimizer.safetensors", "best.safetensors", "state.json", "MANIFEST.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "one byte short", "flipped bit"])
def test_damage_is_found_and_the_checkpoint_before_is_used(tmp_path, name, damage):
    checkpoint.save(tmp_path, snapshot(1, value=1.0), keep_last=2)
    newest = checkpoint.save(tmp_path, snapshot(2, value=2.0), keep_last=2)
    _damage(newest / name, damage)
    found, problems = checkpoint.latest(tmp_path)
    assert found.progress.step == 1
    assert len(problems) == 1
    assert "step-00000002" in problems[0]
    assert (name if (name, damage) != ("MANIFEST.json", "flipped bit") else "sha256") in problems[0]
    if damage in ("empty", "half", "one byte short") and name != "MANIFEST.json":
        assert "bytes, expected" in problems[0]
    assert not newest.exists()  # else it would count among the last ones that are kept


def _damage(path, damage):
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped bit":
        place = content.index(b"sha256") + 12 if path.name == "MANIFEST.json" else len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    else:
        path.write_bytes(content[: {"empty": 0, "half": len(content) // 2, "one byte short": len(content) - 2}[damage]])


def test_nothing_usable_is_an_error_of_its_own(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(1), keep_last=2)
    _damage(path / "state.json", "empty")
    with pytest.raises(ResumeError, match="no checkpoint can be used") as caught:
        checkpoint.latest(tmp_path)
    assert caught.value.exit_code == 6


def save_with_a_limit_on_files(folder, said):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    big = {"w": torch.zeros(100_000)}
    try:
        checkpoint.save(folder, Snapshot(Progress(step=2), big, big), 2)
    except StorageError as error:
        said.write_text(str(error))
        sys.exit(error.exit_code)


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path):
    """A file-size limit stands in for a full disk: the kernel refuses the write in the same place."""
    folder, said = tmp_path / "checkpoints", tmp_path / "said"
    checkpoint.save(folder, snapshot(1), keep_last=2)
    process = processes.CONTEXT.Process(target=save_with_a_limit_on_files, args=(folder, said))
    process.start()
    process.join()
    assert process.exitcode == 5
    assert "disk is full" in said.read_text()
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    assert checkpoint.latest(folder)[0].progress.step == 1


def test_saving_needs_little_memory_of_its_own(tmp_path):
    weights = {f"w{number}": torch.ones(2**20) for number in range(8)}  # 32 MB
    optimizer = {f"{name}/{key}": value.clone() for name, value in weights.items() for key in ("exp_avg", "exp_avg_sq")}
    hardware.reset_peak_memory()
    before = hardware.peak_memory_bytes()
    checkpoint.save(tmp_path, Snapshot(Progress(step=1), weights, optimizer, weights), keep_last=2)
    assert hardware.peak_memory_bytes() - before < 16 * 2**20  # of 128 MB written


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        checkpoint.save(tmp_path / "file" / "checkpoints", snapshot(), keep_last=2)


TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}


def save_and_be_killed(folder, moment):
    """Save step 3, killed at the `moment`th time that a file is touched; the exit code is the number of times."""
    times = 0

    def touch(event, _):
        nonlocal times
        if event in TOUCHES:
            times += 1
            if times == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sync = os.fsync
    os.fsync = lambda file: (touch("open", ()), sync(file), touch("open", ()))
    sys.addaudithook(touch)
    checkpoint.save(folder, snapshot(3, value=3.0), keep_last=2)
    os._exit(times)


def test_killed_at_any_moment_of_saving_the_newest_is_intact(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path / "before", snapshot(step, value=float(step)), keep_last=2)
    found, moment, code = [], 0, None
    while code is None or code < 0:
        moment += 1
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(moment))
        process = processes.CONTEXT.Process(target=save_and_be_killed, args=(folder, moment))
        process.start()
        process.join()
        code = process.exitcode
        newest, problems = checkpoint.latest(folder)
        assert problems == []
        assert newest.weights["layer.weight"][0, 0] == newest.progress.step
        found.append(newest.progress.step)
        checkpoint.save(folder, snapshot(4), keep_last=2)
        assert sorted(path.name for path in folder.iterdir()) == [f"step-0000000{found[-1]}", "step-00000004"]
    assert code == moment - 1 > 20
    assert found == sorted(found)
    assert set(found) == {2, 3}


def test_state_is_plain_json(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(3), keep_last=2)
    assert json.loads((path / "state.json").read_text())["window_loss"] == 0.1 + 0.2
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
