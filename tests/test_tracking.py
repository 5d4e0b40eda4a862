"""Trackers: real W&B and TensorBoard, a W&B server on 127.0.0.1, and servers that are not there."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from finetune import tracking
from finetune.recipe import TrackBlock, WandbBlock
from finetune.record import Best, Emissions, Interval, RunRecord, SplitResults
from finetune.tracking import Tracking, preflight
from finetune.tracking.trackers import TensorBoard, Wandb

KEY = "canarykey" + "0" * 40
CONFIG = {"task": "sequence", "train": {"learning_rate": 5e-5}}
RECIPE = "task: sequence  # the resolved recipe\n"


class WandbServer(ThreadingHTTPServer):
    """As much of W&B's server as a run needs; keeps what it is sent. `hangs`: from now on it never answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _WandbRequest)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.hangs = threading.Event()
        self.history: list[dict] = []
        self.summary: dict = {}
        self.files: dict[str, bytes] = {}
        self.run: dict = {}
        self.bodies: list[bytes] = []

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no error here."""

    def graphql(self, operation: str, variables: dict) -> dict:
        ours = {"id": "p1", "name": variables.get("project"), "entity": {"id": "e1", "name": "me"}}
        if operation == "RunResumeStatus" and self.run:
            tail = json.dumps([json.dumps(self.history[-1])] if self.history else [])
            counts = {"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(self.history)}
            texts = {"config": "{}", "summaryMetrics": "{}", "eventsTail": "[]", "wandbConfig": '{"t": {}}'}
            return {"model": ours | {"bucket": self.run | counts | texts | {"historyTail": tail, "tags": []}}}
        if operation == "UpsertBucket":
            new = not self.run
            self.run = {"id": "r1", "name": variables["name"], "displayName": variables.get("displayName")}
            bucket = self.run | {"config": "{}", "project": ours, "historyLineCount": len(self.history)}
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r1", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, files: dict) -> None:
        if history := files.get("wandb-history.jsonl"):
            self.history[history["offset"] :] = [json.loads(line) for line in history["content"]]
        if summary := files.get("wandb-summary.json"):
            self.summary = json.loads(summary["content"][-1])

    def points(self, name: str) -> list[tuple[int, float]]:
        return [(line["global_step"], line[name]) for line in self.history if name in line]


class _WandbRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def _answer(self) -> None:
        body = self._body()
        while self.server.hangs.is_set():
            time.sleep(0.05)
        answer: dict = {}
        if self.path == "/graphql":
            query = json.loads(body)
            answer = {"data": self.server.graphql(query.get("operationName", ""), query.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(json.loads(body).get("files", {}))
        elif self.path.startswith("/upload/"):
            self.server.files[self.path.removeprefix("/upload/")] = body
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().strip(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            body = b"".join(chunks)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        headers = {name: value for name, value in self.headers.items() if name != "Authorization"}
        self.server.bodies.append(self.path.encode() + repr(headers).encode() + body)
        return body

    def log_message(self, *args) -> None:
        """Silent."""


@pytest.fixture(scope="module", autouse=True)
def accelerate_state():
    from accelerate import PartialState

    PartialState(cpu=True)
    yield
    PartialState._reset_state()


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """No login and no W&B setting of the machine; nothing left running afterwards."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    yield
    assert services() == []
    assert "WANDB_SERVICE" not in os.environ


@pytest.fixture
def server():
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.hangs.clear()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run_folder(tmp_path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def services() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("wandb-core") and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def wandb_block(mode: str, **values) -> WandbBlock:
    return WandbBlock(project="demo", mode=mode, **values)


def record() -> RunRecord:
    results = {"test": SplitResults(n=50, metrics={"accuracy": Interval(value=0.8, low=0.7, high=0.9)})}
    return RunRecord(results=results, best=Best(step=2, metric="accuracy", value=0.81), emissions=Emissions(kwh=0.25))


def use(server_url: str, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server_url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)


UNHURRIED = {"patience_seconds": 60.0, "finish_seconds": 60.0}  # for a busy machine; what succeeds does not wait


def start(folder: Path, mode: str, previous=None, patience_seconds=15.0, finish_seconds=10.0, **values):
    warnings: list[str] = []
    run = Tracking(
        wandb_block(mode, **values),
        False,
        folder,
        CONFIG,
        previous or {},
        warn=warnings.append,
        patience_seconds=patience_seconds,
        finish_seconds=finish_seconds,
    )
    return run, warnings


def sync(folder: Path, note: str) -> None:
    """Do what the note tells a user to do."""
    command = note.split("run in the run folder: ")[1].split()
    program = shutil.which("wandb", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    subprocess.run([program, *command[1:]], cwd=folder, check=True, capture_output=True)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]


def test_online_run_has_config_own_axis_results_and_recipe(server, run_folder, monkeypatch) -> None:
    use(server.url, monkeypatch)
    run, warnings = start(run_folder, "online", tags=["a"], name="first", **UNHURRIED)
    for step in (10, 20, 30):
        run.log({"train/loss": 1 / step}, step)
    run.log({"validation/accuracy": 0.75}, 30)
    run.log({"test/late": 1.0}, 5)  # below the step seen: wandb's own axis would drop it
    tracker = run.finish(record())["wandb"]

    assert warnings == []
    assert tracker.mode == "online"
    assert tracker.id == server.run["name"]
    assert tracker.url.endswith(f"/me/demo/runs/{tracker.id}")
    assert tracker.note is None
    assert server.points("train/loss") == [(10, 0.1), (20, 0.05), (30, pytest.approx(1 / 30))]
    assert server.points("validation/accuracy") == [(30, 0.75)]
    assert server.points("test/late") == [(5, 1.0)]
    config = YAML(typ="safe").load(server.files["config.yaml"])
    assert config["train"]["value"] == CONFIG["train"]
    axes = config["_wandb"]["value"][
        "m"
    ]  # fields of MetricRecord: 1 name, 2 glob, 5 position of the step metric from 1
    assert [axes[axis["5"] - 1]["1"] for axis in axes if axis.get("2") == "*"] == ["global_step"]
    assert server.files["recipe.yaml"].decode() == RECIPE
    final = json.loads(server.files["wandb-summary.json"])
    assert (final["test/accuracy"], final["test/accuracy/low"], final["test/n"]) == (0.8, 0.7, 50)
    assert (final["best/accuracy"], final["emissions/kwh"]) == (0.81, 0.25)
    assert all(
        path.is_relative_to(run_folder / "tracking") for path in files_below(run_folder) if path.name != "recipe.yaml"
    )
    assert not any(path.is_symlink() for path in files_below(run_folder))


def test_resumed_online_run_is_the_same_run_without_duplicate_points(server, run_folder, monkeypatch) -> None:
    use(server.url, monkeypatch)
    first, _ = start(run_folder, "online", **UNHURRIED)
    for step in (1, 2, 3, 4):
        first.log({"train/loss": float(step)}, step)
    first.log({"validation/accuracy": 0.5}, 2)
    carried = first.ids()
    first.finish(RunRecord(exit_code=75))
    again, warnings = start(run_folder, "online", previous=carried, **UNHURRIED)  # from a checkpoint of step 2
    again.log({"validation/accuracy": 0.5}, 2)
    for step in (3, 4, 5):
        again.log({"train/loss": float(step)}, step)
    again.log({"validation/accuracy": 0.6}, 4)
    ended = again.finish(RunRecord())
    assert warnings == []
    assert ended["wandb"].id == carried["wandb"].id
    assert server.points("train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0)]
    assert server.points("validation/accuracy") == [(2, 0.5), (4, 0.6)]


def test_offline_needs_no_login_and_no_server_and_can_be_synced_after_resumes(server, run_folder, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    first, warnings = start(run_folder, "offline", **UNHURRIED)
    first.log({"train/loss": 1.0}, 1)
    while not services():
        time.sleep(0.05)
    assert "--no-observability" in services()[0].cmdline()  # its error reporting looks up a server from an offline run
    carried = first.finish(RunRecord(exit_code=75))
    time.sleep(1.0)  # wandb names its folders by the second
    again, more = start(run_folder, "offline", previous=carried, **UNHURRIED)
    again.log({"train/loss": 1.0}, 1)
    again.log({"train/loss": 2.0}, 2)
    ended = again.finish(record())["wandb"]
    assert warnings + more == []
    assert server.bodies == []
    assert (ended.mode, ended.url, ended.id) == ("offline", None, carried["wandb"].id)
    assert str(run_folder) not in ended.note
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    sync(run_folder, ended.note)
    assert server.points("train/loss") == [(1, 1.0), (2, 2.0)]
    assert server.files["recipe.yaml"].decode() == RECIPE
    assert json.loads(server.files["wandb-summary.json"])["test/accuracy"] == 0.8


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_unreachable_server_falls_back_to_offline_and_loses_nothing(kind, server, run_folder, monkeypatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if kind == "silent":
            other.listen()
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        if kind == "closed":
            other.close()
        use(url, monkeypatch)
        started = time.perf_counter()
        run, warnings = start(run_folder, "online", patience_seconds=3.0)
        run.log({"train/loss": 1.0}, 1)
        delay = time.perf_counter() - started
        while run.ids()["wandb"].mode == "online" and time.perf_counter() - started < 60:
            time.sleep(0.1)
        fallback = time.perf_counter() - started
        run.log({"train/loss": 2.0}, 2)
        ended = run.finish(RunRecord())["wandb"]
    assert delay < 1.5  # training goes on meanwhile
    assert fallback < 3.0 + 27.0  # two starts of W&B's service included
    assert ended.mode == "offline"
    assert len(warnings) == 1
    assert "online was not possible" in warnings[0]
    assert "goes on offline" in warnings[0]
    assert "wandb sync tracking/wandb/offline-run-" in warnings[0]
    assert "wandb sync tracking/wandb/offline-run-" in ended.note
    assert KEY not in warnings[0]
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    sync(run_folder, ended.note)
    assert server.points("train/loss") == [(1, 1.0), (2, 2.0)]


def test_a_run_that_ends_before_the_server_answers_goes_offline_in_time(server, run_folder, monkeypatch) -> None:
    server.hangs.set()
    use(server.url, monkeypatch)
    run, warnings = start(run_folder, "online", patience_seconds=60.0, finish_seconds=8.0)
    run.log({"train/loss": 1.0}, 1)
    started = time.perf_counter()
    ended = run.finish(record())["wandb"]
    assert time.perf_counter() - started < 20
    assert ended.mode == "offline"
    assert len(warnings) == 1
    assert "goes on offline" in warnings[0]
    server.hangs.clear()
    sync(run_folder, ended.note)
    assert server.points("train/loss") == [(1, 1.0)]


def test_without_a_key_it_goes_offline_and_never_asks(run_folder) -> None:
    run, warnings = start(run_folder, "online")
    run.log({"train/loss": 1.0}, 1)
    ended = run.finish(RunRecord())["wandb"]
    assert ended.mode == "offline"
    assert len(warnings) == 1
    assert "no API key" in warnings[0]


def test_server_that_stops_answering_costs_bounded_time(server, run_folder, monkeypatch) -> None:
    use(server.url, monkeypatch)
    run, warnings = start(run_folder, "online", finish_seconds=4.0)
    run.log({"train/loss": 1.0}, 1)
    while not run.ids()["wandb"].url:
        time.sleep(0.05)
    server.hangs.set()
    started = time.perf_counter()
    run.log({"train/loss": 2.0}, 2)
    logging = time.perf_counter() - started
    ended = run.finish(RunRecord())["wandb"]
    assert logging < 1
    assert time.perf_counter() - started < 15
    assert len(warnings) == 1
    assert "wandb sync --include-online tracking/wandb/run-" in ended.note
    server.hangs.clear()
    time.sleep(0.2)
    sync(run_folder, ended.note)
    assert server.points("train/loss") == [(1, 1.0), (2, 2.0)]


def test_a_service_that_dies_switches_the_tracker_off_with_one_line(run_folder) -> None:
    run, warnings = start(run_folder, "offline")
    run.log({"train/loss": 1.0}, 1)
    while not services():
        time.sleep(0.05)
    time.sleep(1.5)
    services()[0].kill()
    for step in range(2, 30):
        run.log({"train/loss": 1.0}, step)
        time.sleep(0.02)
    started = time.perf_counter()
    run.finish(record())
    assert time.perf_counter() - started < 25
    assert len(warnings) == 1
    assert "switched off" in warnings[0]


def test_a_tracker_that_hangs_delays_nothing_and_leaves_the_others_alone(run_folder, monkeypatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(Wandb, "log", lambda *_: release.wait(60))
    monkeypatch.setattr(Wandb, "abort", lambda _: None)
    warnings: list[str] = []
    run = Tracking(wandb_block("offline"), True, run_folder, CONFIG, warn=warnings.append, finish_seconds=3.0)
    started = time.perf_counter()
    for step in range(100):
        run.log({"train/loss": 1.0}, step)
    assert time.perf_counter() - started < 2
    run.finish(record())
    assert time.perf_counter() - started < 15
    assert len(warnings) == 1
    assert warnings[0].startswith("wandb: it did not finish in time; wandb is switched off")
    assert len(events(run_folder)["train/loss"]) == 100
    release.set()
    while services():
        time.sleep(0.05)


def test_a_run_that_never_started_is_not_said_to_be_uploadable(run_folder, monkeypatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(Wandb, "_start", lambda *_: release.wait(60))
    warnings: list[str] = []
    run = Tracking(wandb_block("offline"), False, run_folder, CONFIG, warn=warnings.append, finish_seconds=0.5)
    ended = run.finish(record())["wandb"]
    release.set()
    assert ended.note == "W&B has nothing of this run"
    assert len(warnings) == 1
    assert "metrics.jsonl has everything" in warnings[0]
    assert "wandb sync" not in warnings[0]


def test_a_tracker_that_fails_is_switched_off_once(run_folder, monkeypatch) -> None:
    calls = []

    def broken(self, values, step):
        calls.append(step)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoard, "log", broken)
    warnings: list[str] = []
    run = Tracking(None, True, run_folder, CONFIG, warn=warnings.append)
    for step in range(5):
        run.log({"train/loss": 1.0}, step)
        time.sleep(0.05)
    run.finish(record())
    assert len(calls) == 1
    assert warnings[0].startswith(
        "tensorboard: OSError: [Errno 28] No space left on device; tensorboard is switched off"
    )
    assert len(warnings) == 1


def test_a_tracker_that_does_not_keep_up_is_switched_off(run_folder, monkeypatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(tracking, "MAX_WAITING", 10)
    monkeypatch.setattr(TensorBoard, "open", lambda _: release.wait(60))
    warnings: list[str] = []
    run = Tracking(None, True, run_folder, CONFIG, warn=warnings.append, finish_seconds=0.2)
    for step in range(20):
        run.log({"train/loss": 1.0}, step)
    assert len(warnings) == 1
    assert "10 points wait" in warnings[0]
    run.finish(record())
    release.set()
    assert len(warnings) == 1


def events(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of all event files, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((run_folder / "tracking" / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag != "recipe/text_summary":
                    number = float(tensor_util.make_ndarray(value.tensor))
                    found.setdefault(value.tag, []).append((event.step, pytest.approx(number, rel=1e-6)))
    return found


def test_tensorboard_files_hold_points_and_results_and_are_resumed(run_folder, monkeypatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "canary.host.example")
    first = Tracking(None, True, run_folder, CONFIG)
    first.log({"train/loss": 0.5}, 1)
    first.log({"train/loss": 0.25}, 2)
    carried = first.ids()
    first.finish(RunRecord(exit_code=75))
    (name,) = [path.name for path in (run_folder / "tracking" / "tensorboard").iterdir()]
    assert name.startswith("events.out.tfevents.")
    assert "canary" not in name
    time.sleep(1.0)
    again = Tracking(None, True, run_folder, CONFIG, carried)
    again.log({"train/loss": 0.25}, 2)
    again.log({"train/loss": 0.125}, 3)
    again.finish(record())
    found = events(run_folder)
    assert found["train/loss"] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert found["results/test/accuracy"] == [(3, 0.8)]
    contents = b"".join(path.read_bytes() for path in files_below(run_folder / "tracking"))
    assert RECIPE.strip().encode() in contents


CANARIES = {
    "HF_TOKEN": "hf_canarytoken1111",
    "AWS_SECRET_ACCESS_KEY": "canaryaws2222",
    "WANDB_HOST": "canaryhost3333",
    "WANDB_API_KEY": KEY,
}


PROGRAM = """
import sys
import time
from pathlib import Path
from accelerate import PartialState
from finetune.recipe import WandbBlock
from finetune.record import RunRecord
from finetune.tracking import Tracking

PartialState(cpu=True)
for mode in ("offline", "online"):
    warnings = []
    block = WandbBlock(project="demo", mode=mode)
    run = Tracking(block, True, Path(sys.argv[1]) / mode, {"task": "t"}, warn=warnings.append)
    while not run.ids()["wandb"].url and not run.ids()["wandb"].note:
        time.sleep(0.05)
    print("canaryconsole5555", flush=True)
    run.log({"train/loss": 1.0}, 1)
    tracker = run.finish(RunRecord())["wandb"]
    assert tracker.mode == mode, tracker
    assert warnings == [], warnings
"""


def test_secrets_and_the_machine_are_recorded_nowhere(server, tmp_path, monkeypatch) -> None:
    work = tmp_path / "canarywork"
    work.mkdir()
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    subprocess.run(["git", "-C", str(work), "remote", "add", "origin", "https://canarygit4444@x.example/y"], check=True)
    (work / "canaryprogram.py").write_text(PROGRAM)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("PYTHONPATH", str(Path(tracking.__file__).parents[2]))
    runs = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-W", "error", "canaryprogram.py", str(runs), "--password", "canaryargv6666"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "canaryconsole5555\n" * 2
    paths = files_below(runs)
    assert len([path for path in paths if path.suffix == ".wandb"]) == 2
    for path in paths:
        assert b"canary" not in path.read_bytes(), path
        assert "canary" not in path.relative_to(runs).as_posix()
    assert server.points("train/loss") == [(1, 1.0)]
    for body in server.bodies:
        assert b"canary" not in body


def test_recipe_decides_over_the_environment(run_folder, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "other")
    monkeypatch.setenv("WANDB_DIR", "/nonexistent")
    monkeypatch.setenv("WANDB_RUN_ID", "other")
    run, warnings = start(run_folder, "offline", **UNHURRIED)
    run.log({"train/loss": 1.0}, 1)
    ended = run.finish(RunRecord())["wandb"]
    assert warnings == []
    assert ended.id != "other"
    assert list((run_folder / "tracking" / "wandb").glob(f"offline-run-*-{ended.id}"))


def test_nothing_asked_for_costs_nothing(run_folder) -> None:
    threads = threading.active_count()
    run = Tracking(None, False, run_folder, CONFIG)
    run.log({"train/loss": 1.0}, 1)
    assert run.finish(record()) == {}
    assert threading.active_count() == threads
    assert not (run_folder / "tracking").exists()
    assert Tracking(wandb_block("disabled"), False, run_folder, CONFIG).ids() == {}
    code = "import sys, finetune.tracking; print({'wandb', 'torch', 'accelerate', 'tensorboard'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"


def online(**track) -> TrackBlock:
    return TrackBlock(wandb=wandb_block("online"), **track)


def test_preflight_wants_a_key_for_online_only(monkeypatch) -> None:
    (problem,) = preflight(online())
    assert problem.startswith("track.wandb: no API key")
    assert "wandb login" in problem
    assert "track.wandb.mode=offline" in problem
    assert preflight(TrackBlock(wandb=wandb_block("offline"))) == []
    assert preflight(TrackBlock(wandb=wandb_block("disabled"))) == []
    assert preflight(TrackBlock()) == []
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert preflight(online()) == []
    monkeypatch.setenv("WANDB_API_KEY", "canary-short")
    (problem,) = preflight(online())
    assert "40 characters" in problem
    assert "canary" not in problem


@pytest.mark.parametrize(
    ("machine", "base_url", "found"),
    [
        ("api.wandb.ai", None, True),
        ("api.forge.coreweave.com", None, True),
        ("wandb.example:8080", "https://wandb.example:8080", True),
        ("api.wandb.ai", "https://wandb.example", False),
        ("github.com", None, False),
    ],
)
def test_preflight_finds_what_wandb_login_stored(tmp_path, monkeypatch, machine, base_url, found) -> None:
    (tmp_path / "home").mkdir()
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    if base_url:
        monkeypatch.setenv("WANDB_BASE_URL", base_url)
    assert (preflight(online()) == []) is found


def test_preflight_reads_the_settings_file(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder))
    (folder / "settings").write_text(f"[default]\napi_key = {KEY}\n")
    assert preflight(online()) == []
    (folder / "settings").write_text("no settings file\n")
    assert len(preflight(online())) == 1


def test_preflight_names_what_is_not_installed(monkeypatch) -> None:
    real = importlib.util.find_spec
    absent = {"wandb", "tensorboard"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else real(name, *rest))
    problems = preflight(online(tensorboard=True))
    assert len(problems) == 2
    assert "pip install wandb" in problems[0]
    assert "pip install tensorboard" in problems[1]
