"""Run each kind of training twice: once to its end, and once killed by SIGKILL at random times and started again.

Both must end with the same bytes: exported weights, optimizer tensors, order of the rows, metrics, predictions.

A kill comes when the checkpoints show that the run has reached a step drawn at random; one of ten while it starts. It
hits all processes, or one of several, or the launcher alone.

--start command: the command line, by `accelerate launch` where there are several processes.
--start fork: forks of one process that has imported everything, with the environment of the launcher: the same code in
a fraction of the time, without pictures and without measuring energy. Such a run is over for us when its record says
`finished`; the verification after it only reads.

Every kind has a folder of its own with a result in it, so a soak that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
HEADS = ("sequence", "token", "span", "seq2seq")
BATCH = 18
GRACE_SECONDS = 30
LONGEST_SECONDS = 300  # of one start; one that takes longer hangs
PLACES = ("before its first save", "training", "saving", "after the last step")
ALL, ONE, LAUNCHER = "all", "one process", "the launcher"

CHANGES = (
    "model.sha256=null",
    "data.limit.train=50",  # no multiple of the batch, so that each epoch ends in a smaller one
    "data.limit.validation=12",
    "data.limit.test=12",
    f"train.batch_size={BATCH}",
    "train.epochs=10",
    "train.learning_rate=0.001",
    "train.save_every=2",
    "evaluate.every=10",
)


@dataclass(frozen=True)
class Kind:
    """One kind of run."""

    head: str
    tuning: str  # full | lora
    precision: str  # fp32 | bf16
    accumulation: int  # micro-batches of a step on each process
    processes: int

    @property
    def name(self) -> str:
        """Also the name of its folder."""
        return f"{self.head}-{self.tuning}-{self.precision}-a{self.accumulation}-p{self.processes}"

    def arguments(self, checkpoint: Path, output: Path) -> list[str]:
        """What follows `finetune` on the command line."""
        micro = -(-BATCH // (self.processes * self.accumulation))
        changes = [
            *CHANGES,
            f"model.checkpoint={checkpoint}/",
            f"train.precision={self.precision}",
            f"train.micro_batch_size={micro}",
            f"output={output}",
            *(["model.lora.r=4"] if self.tuning == "lora" else []),
        ]
        return ["train", f"recipes/{self.head}/tiny.yaml", "--quiet", *changes]


@dataclass
class Result:
    """What one kind came to; `differences` is empty when the killed run and the uninterrupted one agree."""

    kind: str
    start: str
    kills: int = 0
    places: dict[str, int] = field(default_factory=dict)  # what the run was doing -> kills
    victims: dict[str, int] = field(default_factory=dict)  # all processes, one of them, the launcher -> kills
    resumed_from: list[int] = field(default_factory=list)  # steps
    differences: list[str] = field(default_factory=list)
    fingerprint: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Exit code 1 when a killed run ended with other bytes than the uninterrupted one."""
    options = _options()
    signal.signal(signal.SIGTERM, _stop)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"FINETUNE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    axes = (options.heads, options.tuning, options.precision, options.accumulation, options.processes)
    kinds = [Kind(*words, int(a), int(p)) for *words, a, p in itertools.product(*axes)]
    results = []
    for number, kind in enumerate(kinds):
        # An even share of all kills; the first kinds take what does not divide.
        share = options.kills // len(kinds) + (number < options.kills % len(kinds))
        results.append(_soak(kind, share, folder, options))
        print(_line(results[-1]), flush=True)
        report = {"kills": sum(result.kills for result in results), "results": [asdict(result) for result in results]}
        (folder / "soak.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _summary(results)
    return 1 if any(result.differences for result in results) else 0


def _options() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=128, help="over all kinds (128)")
    parser.add_argument("--heads", type=words, default=list(HEADS), help=",".join(HEADS))
    parser.add_argument("--tuning", type=words, default=["full", "lora"], help="full,lora")
    parser.add_argument("--precision", type=words, default=["fp32", "bf16"], help="fp32,bf16")
    parser.add_argument("--accumulation", type=words, default=["1", "3"], help="1,3")
    parser.add_argument("--processes", type=words, default=["1", "2"], help="1,2; 3 works, too")
    parser.add_argument("--start", choices=("command", "fork"), default="command", help="see above (command)")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills (0)")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="of runs and results (runs/soak)")
    return parser.parse_args()


def _stop(number: int, _frame: object) -> None:
    """Leave no run behind when the soak itself is stopped."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(128 + number)


# -------------------------------------------------------------------------------------------- one kind


@dataclass
class Whole:
    """The uninterrupted run: its steps, and seconds until its first checkpoint, its last one, and its end."""

    steps: int
    begun: float
    trained: float
    finished: float


def _soak(kind: Kind, kills: int, folder: Path, options: argparse.Namespace) -> Result:
    """The result of one kind, from disk when an earlier call of the script came to it."""
    place = folder / kind.name
    kept = place / "result.json"
    if kept.is_file():
        return Result(**json.loads(kept.read_text(encoding="utf-8")))
    shutil.rmtree(place, ignore_errors=True)  # of a soak that was stopped half-way
    place.mkdir()
    checkpoint = make_checkpoint(folder / f"checkpoint-{kind.head}", kind.head)

    def start(name: str) -> Start:
        way = Fork if options.start == "fork" else Start
        return way(kind, kind.arguments(checkpoint, place / name), place / name)

    whole = _to_its_end(start("whole"))
    result = Result(kind.name, _way(kind, options.start))
    draw = random.Random(f"{options.seed} {kind.name}")
    for number in range(kills):
        _killed(start("cut"), draw, whole, (number / kills, (number + 1) / kills), result)
    _to_its_end(start("cut"))
    result.fingerprint, found = fingerprint(place / "whole"), fingerprint(place / "cut")
    names = result.fingerprint.keys() | found.keys()
    result.differences = sorted(name for name in names if result.fingerprint.get(name) != found.get(name))
    result.resumed_from = _record(place / "cut")["training"]["resumed_from"]
    kept.write_text(json.dumps(asdict(result)) + "\n", encoding="utf-8")
    return result


def _way(kind: Kind, start: str) -> str:
    if start == "fork":
        return "forks"
    return "accelerate launch" if kind.processes > 1 else "python -m finetune"


def _to_its_end(run: Start) -> Whole:
    """Wait for a run that nobody kills."""
    started = time.monotonic()
    moments: dict[int, float] = {}  # step of a checkpoint -> when it was first seen

    def over() -> bool:
        moments.setdefault(_newest(run.output), time.monotonic() - started)
        return run.over()

    run.wait_for(over)
    if any(run.codes()):
        raise SystemExit(f"{run.log}: exit codes {run.codes()}")
    saved = [moments[step] for step in sorted(moments) if step]
    return Whole(_newest(run.output), saved[0], saved[-1], time.monotonic() - started)


def _killed(run: Start, draw: random.Random, whole: Whole, part: tuple[float, float], result: Result) -> None:
    """Kill a run, and book where that hit it; nothing is booked when it had ended before.

    The moment is drawn from a part of the work: steps, and a quarter of their number for what comes after them. What
    loses one process or the launcher may end by itself, and is killed half a minute later, as a launcher does.
    """
    before, record = _newest(run.output), _written(run.output)
    share = draw.uniform(*part) * 1.25
    if draw.random() < 0.1:
        _pause(run, draw.uniform(0, whole.begun))
    else:
        step = min(whole.steps, max(before + 1, int(share * whole.steps)))
        run.wait_for(lambda: run.over() or _newest(run.output) >= step)
        after = max(0.0, share - 1) * 4 * (whole.finished - whole.trained)
        _pause(run, after + draw.uniform(0, 2 * (whole.trained - whole.begun) / whole.steps))
    if run.over():
        return
    place = _place(run.output, before, record, whole.steps)
    victim = draw.choice(run.victims())
    run.kill(victim, draw)
    if victim != ALL:
        _pause(run, GRACE_SECONDS)
        run.kill(ALL, draw)
    result.kills += 1
    result.places[place] = result.places.get(place, 0) + 1
    result.victims[victim] = result.victims.get(victim, 0) + 1


def _pause(run: Start, seconds: float) -> None:
    end = time.monotonic() + seconds
    run.wait_for(lambda: run.over() or time.monotonic() > end)


def _newest(output: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((int(path.name[-8:]) for path in (output / "checkpoints").glob("step-????????")), default=0)


def _written(output: Path) -> int:
    record = output / "run.json"
    return record.stat().st_mtime_ns if record.exists() else 0


def _place(output: Path, before: int, record: int, steps: int) -> str:
    """What a run is doing that began with checkpoint `before` and when its record was last written at `record`."""
    newest = _newest(output)
    if _written(output) == record:
        return PLACES[0]
    if newest == steps:
        return PLACES[3]
    if any((output / "checkpoints").glob(".*")):
        return PLACES[2]
    return PLACES[1] if newest > before else PLACES[0]


def _record(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return found


# -------------------------------------------------------------------------------------------- starts


class Start:
    """One start of a run: the command line, by `accelerate launch` where there are several processes."""

    def __init__(self, kind: Kind, arguments: list[str], output: Path) -> None:
        self.output, self.log, self.several = output, output.with_suffix(".log"), kind.processes > 1
        self.workers: list[psutil.Process] = []  # as they were at the first kill
        launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/cpu.yaml"]
        launch += ["--num_processes", str(kind.processes)]
        command = [sys.executable, *(launch if self.several else []), "-m", "finetune", *arguments]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )

    def over(self) -> bool:
        """Whether all of it has ended."""
        return self.process.poll() is not None and not any(map(_alive, self.workers))

    def codes(self) -> list[int]:
        """Exit codes of a run that is over."""
        return [self.process.returncode]

    def victims(self) -> list[str]:
        """Which kinds of kill there are."""
        return [ALL, ONE, LAUNCHER] if self.several else [ALL]

    def kill(self, victim: str, draw: random.Random) -> None:
        """SIGKILL to all processes, to one of several, or to the launcher. Each worker has a session of its own."""
        if self.process.poll() is None:
            launcher = psutil.Process(self.process.pid)
            self.workers = launcher.children(recursive=True)
            if victim == ONE and (ranks := launcher.children()):
                _kill([draw.choice(ranks)])
                return
        self.process.kill()
        self.process.wait()
        if victim == ALL:
            _kill(self.workers)

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Raises SystemExit, and leaves nothing running, when it does not come."""
        end = time.monotonic() + LONGEST_SECONDS
        while not what():
            if time.monotonic() > end:
                self.kill(ALL, random.Random())
                raise SystemExit(f"{self.log}: hangs")
            time.sleep(0.01)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    while any(map(_alive, processes)):
        time.sleep(0.01)


class Fork(Start):
    """One start as forks of this process."""

    def __init__(self, kind: Kind, arguments: list[str], output: Path) -> None:
        import finetune.run  # noqa: F401

        self.output, self.log = output, output.with_suffix(".log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.ended: dict[int, int | None] = {}  # process -> its exit code
        for rank in range(kind.processes):
            child = os.fork()
            if child == 0:
                _become(rank, kind.processes, port, arguments, self.log)
            self.ended[child] = None

    def over(self) -> bool:
        for child, code in self.ended.items():
            if code is None and (found := os.waitpid(child, os.WNOHANG))[0]:
                self.ended[child] = os.waitstatus_to_exitcode(found[1])
        if None in self.ended.values() and _written(self.output) and _record(self.output)["status"] == "finished":
            self.kill(ALL, random.Random())
            self.ended = dict.fromkeys(self.ended, 0)
        return None not in self.ended.values()

    def codes(self) -> list[int]:
        return [code or 0 for code in self.ended.values()]

    def victims(self) -> list[str]:
        return [ALL, ONE] if len(self.ended) > 1 else [ALL]

    def kill(self, victim: str, draw: random.Random) -> None:
        running = [child for child, code in self.ended.items() if code is None]
        for child in [draw.choice(running)] if victim == ONE and running else running:
            helpers = psutil.Process(child).children(recursive=True)  # the verification, in a session of its own
            os.kill(child, signal.SIGKILL)
            self.ended[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            _kill(helpers)


def _without_measuring(carbon: Any, country: str | None, enabled: bool, previous: Any) -> Any:
    del enabled
    return carbon(country, enabled=False, previous=previous)


def _become(rank: int, processes: int, port: int, arguments: list[str], log: Path) -> None:
    """Be process `rank` of a run, as the launcher would start it; never returns."""
    from finetune import carbon, cli, finish, run

    finish._draw_pictures = lambda _: None
    run.Carbon = functools.partial(_without_measuring, carbon.Carbon)
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.chdir(ROOT)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
            os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = ["finetune", *arguments]
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


# -------------------------------------------------------------------------------------------- what is compared


def fingerprint(output: Path) -> dict[str, str]:
    """sha256 of everything that may not depend on how often a run was stopped."""
    record = _record(output)
    newest = max((output / "checkpoints").glob("step-*"))
    tensors = [*(output / "export").rglob("*.safetensors"), *newest.glob("*.safetensors")]
    files = [*tensors, *(output / "predictions").iterdir()]
    found = {str(path.relative_to(output)): _sha256(path.read_bytes()) for path in files}
    lines = (json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found["metrics"] = _sha256(json.dumps([line | {"seconds": None} for line in lines]).encode())
    found["results"] = _sha256(json.dumps([record["results"], record["best"]]).encode())
    return found | {"sample log": record["training"]["sample_log_sha256"]}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -------------------------------------------------------------------------------------------- the checkpoint


def make_checkpoint(folder: Path, head: str) -> Path:
    """A BERT encoder of random weights with a vocabulary made of the head's rows."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    data = ROOT / "recipes" / ("quickstart" if head == "sequence" else head)
    files = [str(path) for path in sorted(data.glob("*train*")) if path.suffix != ".yaml"]
    words.train(files, trainers.WordPieceTrainer(vocab_size=500, special_tokens=list(marks.values())))
    ends = [(mark, words.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=128, **marks)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 128, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    tokenizer.save_pretrained(folder)
    BertModel(BertConfig(**shape)).save_pretrained(folder)
    return folder


# -------------------------------------------------------------------------------------------- the report


def _line(result: Result) -> str:
    places = ", ".join(f"{count} {place}" for place, count in sorted(result.places.items())) or "none"
    verdict = "equal" if not result.differences else "DIFFERS: " + ", ".join(result.differences)
    return f"{result.kind:28} {result.kills} kills ({places}): {verdict}"


def _summary(results: list[Result]) -> None:
    places: Counter[str] = Counter()
    victims: Counter[str] = Counter()
    columns = "head | tuning | precision | accumulation | processes | started by | kills |"
    print(f"\n| {columns} {' | '.join(PLACES)} | continued from step | same bytes |")
    print("| --- | --- | --- | ---: | ---: | --- | ---: |" + " ---: |" * len(PLACES) + " --- | --- |")
    for result in results:
        places.update(result.places)
        victims.update(result.victims)
        head, tuning, precision, accumulation, processes = result.kind.split("-")
        cells = [head, tuning, precision, accumulation[1:], processes[1:], result.start, str(result.kills)]
        cells += [str(result.places.get(place, 0)) for place in PLACES]
        cells += [", ".join(map(str, result.resumed_from)) or "-", "no" if result.differences else "yes"]
        print("| " + " | ".join(cells) + " |")
    bad = sum(bool(result.differences) for result in results)
    print(f"\n{len(results)} kinds, {bad} with other bytes, {places.total()} kills: {dict(places)}; {dict(victims)}")


if __name__ == "__main__":
    sys.exit(main())
