"""A disk that fills up while a run is writing, on a file system of its own."""

import json
import os
import signal
import subprocess

import processes
import pytest
import tiny_run

from finetune.record import RunRecord

MEGABYTE = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A file system in memory, 6 MB large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system is not permitted here; test_checkpoint limits the size of files instead")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def free_bytes(folder):
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def recipe(folder, disk, checkpoint):
    path = tiny_run.write_recipe(folder, checkpoint, epochs=3, save_every=4)
    path.write_text(path.read_text().replace(f"output: {folder}/out", f"output: {disk}/out"))
    return path


def fill(disk):
    """Leave no byte free."""
    with open(disk / "of somebody else", "wb") as file:
        while size := free_bytes(disk):
            file.write(b"0" * size)
            file.flush()


def test_full_while_saving_keeps_the_checkpoint_before_and_goes_on_when_there_is_space(
    small_disk, tmp_path, tiny_checkpoint
):
    path = recipe(tmp_path, small_disk, tiny_checkpoint)
    out = small_disk / "out"

    codes, errors = processes.train(path, FillUp(small_disk), count=1)
    assert codes == [5]
    assert errors == ["saving step-00000008: the disk is full; free some space, then run the same command again:"
                      " earlier checkpoints are intact\n"]  # fmt: skip
    assert [folder.name for folder in (out / "checkpoints").iterdir()] == ["step-00000004"]
    assert json.loads((out / "run.json").read_text())["status"] in ("running", "failed")
    (small_disk / "of somebody else").unlink()
    codes, errors = processes.train(path, stop_soon, count=1)
    assert codes == [75], errors
    assert RunRecord.read(out / "run.json").status == "pre-empted"
    assert (out / "checkpoints" / "step-00000010").is_dir()


class FillUp:
    """A fault: somebody else fills the disk during step 7."""

    def __init__(self, disk):
        self.disk = disk

    def __call__(self, rank):
        processes.at_step(7, lambda: fill(self.disk))


def stop_soon(rank):
    processes.at_step(10, lambda: os.kill(os.getpid(), signal.SIGTERM))


class BecomeReadOnly:
    """A fault: from step 7 on, the place of the checkpoints is an empty file system that cannot be written."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, rank):
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(self.folder)]
        processes.at_step(7, lambda: subprocess.run(mount, check=True))


def test_a_place_that_becomes_read_only_ends_the_run_and_it_goes_on_later(small_disk, tmp_path, tiny_checkpoint):
    path = recipe(tmp_path, small_disk, tiny_checkpoint)
    checkpoints = small_disk / "out" / "checkpoints"
    codes, errors = processes.train(path, BecomeReadOnly(checkpoints), count=1)
    subprocess.run(["umount", str(checkpoints)], check=True)
    assert codes == [5]
    assert errors[0].startswith("saving step-00000008: [Errno 30] Read-only file system")
    assert RunRecord.read(small_disk / "out" / "run.json").exit_code == 5
    assert [folder.name for folder in checkpoints.iterdir()] == ["step-00000004"]
    codes, errors = processes.train(path, stop_soon, count=1)
    assert codes == [75], errors
    assert (checkpoints / "step-00000010").is_dir()


def test_a_read_only_disk_is_said_before_anything_else(small_disk, tmp_path, tiny_checkpoint):
    path = recipe(tmp_path, small_disk, tiny_checkpoint)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    codes, errors = processes.train(path, count=1)
    assert codes == [2]
    assert errors == [f"output: {small_disk}/out cannot be written (Read-only file system); choose another output\n"]


def test_too_little_space_is_found_before_training(small_disk, tmp_path, tiny_checkpoint):
    path = recipe(tmp_path, small_disk, tiny_checkpoint)
    (small_disk / "of somebody else").write_bytes(b"0" * (free_bytes(small_disk) - MEGABYTE // 2))
    codes, errors = processes.train(path, count=1)
    assert codes == [5]
    assert "for checkpoints and the export" in errors[0]
    assert not (small_disk / "out" / "checkpoints").exists()
