"""Run a program of this package in a fresh process: JSON in, one JSON line out, never longer than allowed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from finetune.errors import StorageError

__all__ = ["Reply", "ask", "environment"]

_LAUNCHER = ("ACCELERATE_", "TORCHELASTIC_", "ROLE_", "GROUP_", "MASTER_", "FSDP_", "PARALLELISM_CONFIG_")
_RANKS = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK"})
_QUIET = {
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # or loading tells a service of the Hub about the repository
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Reply:
    """What a program answered: `answer` is None when it gave none; `code` is None when it was killed at the limit."""

    answer: dict[str, Any] | None
    code: int | None
    errors: str  # the end of stderr


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment without what a launcher of several processes set, with `changes` (None removes)."""
    kept = {k: v for k, v in os.environ.items() if k not in _RANKS and not k.startswith(_LAUNCHER)}
    changed = {**kept, **_QUIET, **changes}
    return {name: value for name, value in changed.items() if value is not None}


def ask(
    program: Path,
    document: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    limit_seconds: float,
    folder: Path | None = None,
    show: bool = False,
) -> Reply:
    """Run `program` with `document` on stdin in working folder `folder` (None: this one).

    With `show` its stderr is ours. The process and all it started are killed after `limit_seconds`, and when this
    process is interrupted. Neither the folder of `program` nor the working folder is on its import path. Raises
    StorageError when there is no room for temporary files.
    """
    try:
        return _ask(program, document, environ, limit_seconds, folder, show)
    except OSError as error:
        message = f"{program.stem}: cannot be run in a fresh process: {error}; set TMPDIR to a folder with space"
        raise StorageError(message) from error


def _ask(
    program: Path,
    document: Mapping[str, Any],
    environ: Mapping[str, str],
    limit_seconds: float,
    folder: Path | None,
    show: bool,
) -> Reply:
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(json.dumps(document).encode())
        stdin.seek(0)
        # Not -I: it would also hide packages of the user's site folder and of PYTHONPATH, which this process may need.
        command = [sys.executable, "-P", str(program)]
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=None if show else stderr,
            env=dict(environ),
            cwd=folder,
            start_new_session=True,
        )
        code = _wait(process, limit_seconds)
        return Reply(_last_line(stdout), code, _tail(stderr))


def _wait(process: subprocess.Popen[bytes], limit_seconds: float) -> int | None:
    try:
        return process.wait(limit_seconds)
    except BaseException as reason:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(reason, subprocess.TimeoutExpired):
            return None
        raise


def _last_line(stdout: IO[bytes]) -> dict[str, Any] | None:
    stdout.seek(0)
    lines = stdout.read().decode().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None  # cut short: the process died while it wrote
    return answer if isinstance(answer, dict) else None


def _tail(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return stderr.read()[-2000:].decode(errors="replace").strip()
