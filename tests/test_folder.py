"""The run folder: one holder at a time, files complete or absent, honest errors."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import card_facts
import pytest

from finetune import folder as folder_module
from finetune.errors import OutputError, StorageError
from finetune.folder import RunFolder, space_needed
from finetune.record import RunRecord, SplitResults


def test_a_second_holder_is_told_who_the_first_is(tmp_path):
    first = RunFolder(tmp_path / "run")
    first.open()
    with pytest.raises(OutputError, match=f"is used by another run \\(process {os.getpid()} on"):
        RunFolder(tmp_path / "run").open()
    first.close()
    second = RunFolder(tmp_path / "run")
    second.open()
    second.close()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        RunFolder(tmp_path / "file" / "run").open()
    assert caught.value.exit_code == 2


def test_too_little_space_is_said_before_training(tmp_path):
    folder = RunFolder(tmp_path)
    folder.require_space(1)
    with pytest.raises(StorageError, match=r"needs about 1000000.0 GB for checkpoints and the export") as caught:
        folder.require_space(10**15)
    assert caught.value.exit_code == 5


def test_what_is_written_already_needs_no_more_space(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    step = folder.checkpoints / "step-00000001"
    for path in (step, folder.export):
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"12345")
    folder.require_space(20)
    with pytest.raises(StorageError):
        folder.require_space(21)


def test_a_place_that_is_no_folder_has_no_space_to_ask_for(tmp_path):
    (tmp_path / "file").write_text("")
    RunFolder(tmp_path / "file" / "run").require_space(10**15)


def test_a_full_disk_at_the_start_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_module, "write_atomic", full)
    with pytest.raises(StorageError, match="No space left on device; free some space or choose another output"):
        RunFolder(tmp_path).open()


def test_space_is_for_the_export_and_for_one_checkpoint_more_than_is_kept():
    assert space_needed(parameters=1_000, trained=100, keep_last=2) == 4 * 1_000 + 3 * 4 * 4 * 100
    assert space_needed(parameters=1_000, trained=100, keep_last=5) == 4 * 1_000 + 6 * 4 * 4 * 100


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path):
    folder = RunFolder(tmp_path)
    for step in range(5):
        folder.append_metrics({"step": step, "text": "é"})
    folder.cut_metrics(3)
    folder.append_metrics({"step": 9})
    assert [json.loads(line)["step"] for line in folder.metrics.read_text(encoding="utf-8").splitlines()] == [
        0,
        1,
        2,
        9,
    ]


def test_a_record_survives_the_disk(tmp_path):
    folder = RunFolder(tmp_path)
    record = RunRecord(status="finished", exit_code=0)
    record.results["test"] = SplitResults.model_validate({"n": 3, "f1": {"value": 0.5, "low": 0.1, "high": 0.9}})
    folder.write_record(record)
    assert folder.read_record() == record
    assert json.loads(folder.record.read_text())["results"]["test"] == {
        "n": 3, "f1": {"value": 0.5, "low": 0.1, "high": 0.9},
    }  # fmt: skip


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format": 1, "status"')
    with pytest.raises(OutputError, match="damaged, it is not JSON: restore it; else move the folder away"):
        RunFolder(tmp_path).read_record()


def finished():
    group = {"by": "source", "value": "web", "n": 3, "metric": "accuracy", "result": {"value": 0.5}}
    return card_facts.record(analysis={"test": {"slices": [group]}})


def written(tmp_path, change):
    """The run.json of a finished run after `change`, in another folder."""
    record = json.loads(finished().model_dump_json())
    change(record)
    folder = RunFolder(tmp_path)
    folder.record.write_text(json.dumps(record))
    return folder


def test_fields_that_a_version_has_more_are_left_aside(tmp_path):
    def change(record):
        record["weather"] = "fair"
        record["training"]["laps"] = 3
        record["analysis"]["test"]["slices"][0]["colour"] = "red"

    assert written(tmp_path, change).read_record() == finished()


def test_a_later_format_is_named(tmp_path):
    def change(record):
        record["format"], record["versions"] = 2, {"headswap": "9.1.0"}

    expected = r"a record of format 2, and this version reads format 1: update headswap \(written by headswap 9.1.0\)"
    with pytest.raises(OutputError, match=expected):
        written(tmp_path, change).read_record()


def test_what_is_wrong_in_a_record_is_said_in_one_line(tmp_path):
    def change(record):
        record["training"]["steps"] = "many"

    with pytest.raises(OutputError, match=r"not a record of format 1: training\.steps: ") as found:
        written(tmp_path, change).read_record()
    assert "\n" not in str(found.value)
