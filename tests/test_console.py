"""Progress on a terminal and in a log file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from finetune import console

STEPS = """
from finetune import console
with console.reporting() as events:
    for step in range(1, 31):
        events.progress("train", step, 30, {"train loss": 1 / step, "train learning_rate": 1e-5})
        if step == 15:
            events.progress("train", step, 30, {"validation accuracy": 0.8125, "validation loss": 0.5})
    events.message("exported [to] a folder")
"""


def on_a_terminal(program: str) -> str:
    """What `program` writes to a standard error that is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0
    return seen.decode()


def test_a_terminal_gets_a_bar_and_keeps_the_scores() -> None:
    seen = on_a_terminal(STEPS)
    assert "train 15/30  validation accuracy 0.8125  validation loss 0.5" in seen
    assert "loss 0.03333" in seen
    assert "learning_rate" not in seen
    assert "exported [to] a folder" in seen


def test_a_log_file_gets_one_line_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with console.reporting() as events:
        for step in range(1, 31):
            events.progress("train", step, 30, {"train loss": 1 / step, "train learning_rate": 1e-5})
        events.progress("train", 30, 30, {"validation accuracy": 0.8125})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train 1/30  loss 1"
    assert lines[1:] == ["train 30/30  loss 0.03333", "train 30/30  validation accuracy 0.8125"]
