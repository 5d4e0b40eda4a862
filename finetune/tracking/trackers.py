"""W&B and TensorBoard through Accelerate's trackers, set up so that they record nothing but what they are given.

These talk to services and may raise, or wait for long: only `tracking.py` calls them, from a thread. Both need
Accelerate's state, so the Accelerator comes first. Source: accelerate.tracking, wandb.Settings.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

from finetune.logins import wandb_problem
from finetune.recipe import WandbBlock
from finetune.record import Tracker

__all__ = ["Backend", "TensorBoard", "Wandb"]

STEP = "global_step"
SERVICE = "WANDB_SERVICE"  # set by wandb while its service process runs


class Backend(Protocol):
    """A tracker. `info` is what run.json says of it, `warning` a line for the user when `open` did not do as asked."""

    name: str
    info: Tracker
    warning: str | None

    def open(self) -> None:
        """Start, falling back to what works."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of one step."""

    def close(self, summary: Mapping[str, float], exit_code: int) -> None:
        """Send the final results and end."""

    def hurry(self) -> None:
        """From any thread: let `open` stop waiting and fall back."""

    def abort(self) -> None:
        """From any thread: end what the calls above may be waiting for, for good."""

    def release(self) -> None:
        """After a failure: leave nothing running."""


class Wandb:
    """A W&B run under `<run>/tracking/wandb`, online or offline, with its id kept over resumes.

    patience_seconds: for the server, before the run goes on offline. finish_seconds: for the last upload.
    """

    name = "wandb"

    def __init__(
        self,
        block: WandbBlock,
        folder: Path,
        config: Mapping[str, Any],
        run_id: str | None,
        patience_seconds: float = 20.0,
        finish_seconds: float = 8.0,
    ) -> None:
        self.info = Tracker(id=run_id or secrets.token_hex(4), mode=block.mode)
        self.warning: str | None = None
        self._block = block
        self._folder = folder
        self._config = dict(config)
        self._patience_seconds = patience_seconds
        self._finish_seconds = finish_seconds
        self._owns_service = self._waiting = self._aborted = False
        self._tracker: Any = None
        self._session: Any = None

    def open(self) -> None:
        """Raises whatever wandb raises when not even an offline run can be started."""
        self._owns_service = SERVICE not in os.environ  # else: the session of a program that calls us
        # wandb's own error reporting looks its server up even in an offline run
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        (self._folder / "tracking").mkdir(parents=True, exist_ok=True)
        if self._block.mode == "online":
            self._open_online()
        if self._tracker is None:
            self._start("offline")
        run = self._tracker.tracker
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        recipe = self._folder / "recipe.yaml"
        if recipe.is_file():
            run.save(str(recipe), base_path=str(self._folder), policy="now")
        self.info.url = run.url or None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """On an axis of our own: wandb's drops what comes below the step it has seen."""
        self._tracker.log({**values, STEP: step})

    def close(self, summary: Mapping[str, float], exit_code: int) -> None:
        """Raises TimeoutError when the last points were not uploaded in time; they are on disk."""
        run = self._tracker.tracker
        run.summary.update(dict(summary))
        try:
            if exit_code:
                run.finish(exit_code=exit_code)
            else:
                self._tracker.finish()
        except Exception:
            self.info.note = self._sync_note()
            raise
        finally:
            self.release()

    def hurry(self) -> None:
        """While it waits for the server, make that fail."""
        if self._waiting:
            self._end_service()

    def abort(self) -> None:
        """Whatever waits for wandb gets an error, and nothing is started again."""
        self._aborted = True
        self.info.note = self._sync_note()
        self._end_service()

    def release(self) -> None:
        """Let go of the run id, and end the service process."""
        self._tracker = None
        if self._owns_service:
            import wandb

            try:
                wandb.teardown()
            except (Exception, SystemExit):  # it is gone, or ended with a code of its own
                self._end_service()
                with suppress(AttributeError):  # a process that wandb lost is not waited for by wandb
                    self._session._connection._proc.join()
        self._tidy()

    def _open_online(self) -> None:
        if problem := wandb_problem():  # wandb would ask on the terminal
            self.warning = f"{problem}; the run goes on offline"
            return
        import wandb  # noqa: F401  (takes seconds on a busy machine, which are not the server's)

        before = self._folders("run")
        watch = threading.Timer(0.95 * self._patience_seconds, self.hurry)
        watch.daemon = True
        watch.start()
        self._waiting = True
        try:
            self._start("online")
        except Exception as error:
            self._waiting = False
            if self._aborted:
                raise
            self.warning = f"online was not possible ({_first_line(error)}); the run goes on offline"
            self.release()
            for folder in set(self._folders("run")) - set(before):
                shutil.rmtree(folder, ignore_errors=True)  # holds nothing yet
        finally:
            self._waiting = False
            watch.cancel()

    def _start(self, mode: str) -> None:
        import wandb
        from accelerate.tracking import WandBTracker

        settings = wandb.Settings(**self._settings())
        if self._owns_service:
            self._session = wandb.setup(settings=wandb.Settings(silent=True, disable_git=True))
        tracker = WandBTracker(
            self._block.project,
            entity=self._block.entity,
            name=self._block.name or self._folder.name,
            notes=self._block.notes,
            tags=self._block.tags,
            config=self._config,
            dir=str(self._folder / "tracking"),
            id=self.info.id,
            mode=mode,
            resume="allow",
            reinit="create_new",
            save_code=False,
            settings=settings,
        )
        tracker.start()
        self._tracker = tracker
        self.info.mode = mode
        if mode == "offline":
            self.info.note = "; ".join(filter(None, (self.warning, self._sync_note())))

    def _settings(self) -> dict[str, Any]:
        """Nothing about the machine, the command line, the console, the code or the environment."""
        return {
            "console": "off",
            "disable_code": True,
            "disable_git": True,
            "finish_timeout": self._finish_seconds,
            "finish_timeout_raises": True,
            "host": "",
            "init_timeout": 0.75 * self._patience_seconds,
            "label_disable": True,
            "program": "finetune",
            "program_abspath": "finetune",
            "program_relpath": "finetune",
            "silent": True,
            "symlink": False,
            "x_disable_machine_info": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_executable": "python",
            "x_save_requirements": False,
        }

    def _sync_note(self) -> str:
        folders = self._folders("offline-run") if self.info.mode == "offline" else self._folders("run")[-1:]
        if not folders:
            return "W&B has nothing of this run"
        paths = " ".join(str(folder.relative_to(self._folder)) for folder in folders)
        option = "" if self.info.mode == "offline" else "--include-online "
        return f"to upload it, run in the run folder: wandb sync {option}{paths}"

    def _folders(self, kind: str) -> list[Path]:
        """Of this run id, the oldest first: their names begin with the time."""
        return sorted((self._folder / "tracking").glob(f"*wandb/{kind}-*-{self.info.id}"))

    def _end_service(self) -> None:
        """Kill wandb-core, the service process that wandb started for us."""
        if not self._owns_service:
            return
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.name().startswith("wandb-core"):
                    child.kill()

    def _tidy(self) -> None:
        """Remove links: they lead to wandb's folder in the home directory."""
        for path in (self._folder / "tracking").rglob("*"):
            if path.is_symlink():
                path.unlink()


class TensorBoard:
    """Event files under `<run>/tracking/tensorboard`."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self.warning: str | None = None
        self.info = Tracker(mode="offline", note="tensorboard --logdir tracking/tensorboard (in the run folder)")
        self._folder = folder
        self._tracker: Any = None
        self._step = 0

    def open(self) -> None:
        """Raises ImportError when tensorboard is not installed, OSError when files cannot be written."""
        from accelerate.tracking import TensorBoardTracker

        self._tracker = TensorBoardTracker("tensorboard", str(self._folder / "tracking"))
        self._hide_host()
        self._tracker.start()
        recipe = self._folder / "recipe.yaml"
        if recipe.is_file():
            text = "".join(f"    {line}" for line in recipe.read_text(encoding="utf-8").splitlines(keepends=True))
            self._tracker.tracker.add_text("recipe", text)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One scalar per value; flushed."""
        self._step = max(step, self._step)
        self._tracker.log(dict(values), step=step)

    def close(self, summary: Mapping[str, float], exit_code: int) -> None:  # noqa: ARG002
        """The results as scalars at the last step, under `results/`."""
        self._tracker.log({f"results/{name}": value for name, value in summary.items()}, step=self._step)
        self._tracker.finish()
        self._hide_host()

    def hurry(self) -> None:
        """Nothing here waits for a service."""

    def abort(self) -> None:
        """Nothing here waits for a service."""

    def release(self) -> None:
        """Nothing runs beside us."""

    def _hide_host(self) -> None:
        """Event files are named after the machine; readers need only the prefix and the time."""
        for path in (self._folder / "tracking" / "tensorboard").glob("events.out.tfevents.*"):
            _, _, _, moment, *rest = path.name.split(".")
            path.rename(path.with_name(".".join(["events.out.tfevents", moment, *rest[-2:]])))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
