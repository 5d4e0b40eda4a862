"""`run.json`: the record of one run or evaluation, to and from disk.

Rates and scores are fractions of 1; units are in the names. A field is None when it could not be known, never a guess.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import Field, ValidationError, model_serializer, model_validator

from finetune.record.analysis import Analysis
from finetune.record.parts import Interval, Part

__all__ = [
    "Analysis",
    "Audit",
    "AuditFinding",
    "Best",
    "Efficiency",
    "Emissions",
    "Export",
    "ExportedFile",
    "HeadSwap",
    "Interval",
    "ModelFacts",
    "Names",
    "Published",
    "Quantiles",
    "RunRecord",
    "Shift",
    "SplitAudit",
    "SplitFacts",
    "SplitResults",
    "Tracker",
    "Training",
    "whole_file",
    "write_atomic",
]

FORMAT: Literal[1] = 1
Status = Literal["running", "pre-empted", "failed", "finished", "published"]


class SplitResults(Part):
    """Results on one split. In JSON: `n` and the metrics side by side."""

    n: int
    metrics: dict[str, Interval] = Field(default_factory=dict)

    def rows(self, metric: str) -> int:
        """How many rows a metric is over."""
        own = self.metrics[metric].n
        return self.n if own is None else own

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        return {"n": self.n} | {name: metric.model_dump() for name, metric in self.metrics.items()}

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, value: Any) -> Any:
        if isinstance(value, dict) and "metrics" not in value:
            return {"n": value.get("n"), "metrics": {name: item for name, item in value.items() if name != "n"}}
        return value


class SplitFacts(Part):
    """One split as it was used."""

    source: str = ""  # what the recipe named: Hub id or file names, never an absolute path
    revision: str | None = None  # the commit that was read, where the Hub gave one
    rows: int
    fingerprint: str
    dropped: dict[str, int] = Field(default_factory=dict)  # reason -> rows
    dropped_ids: dict[str, list[str]] = Field(default_factory=dict)  # reason -> ids of the first 100 rows
    truncated: int = 0  # rows that lost tokens at max_length
    windows: int | None = None  # features made of the rows; None before encoding


class Quantiles(Part):
    """How long the rows of a split are; the unit is in the name of the field that holds it."""

    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    max: int


class SplitAudit(Part):
    """What the audit counted in one split."""

    rows: int
    labels: dict[str, int] = Field(default_factory=dict)  # label -> rows; of tags the entities, or words
    characters: Quantiles | None = None  # of all texts of a row together
    tokens: Quantiles | None = None  # of a feature (a window, where rows have several), cut at max_length
    truncated: int | None = None  # rows that lose tokens at max_length
    scripts: dict[str, int] = Field(default_factory=dict)  # Unicode script of most letters -> rows; "" has no letter


class Shift(Part):
    """How far a split is from train in one respect, beside what chance would do to two samples of one source."""

    split: str
    of: Literal["labels", "values", "characters"]
    distance: float  # total variation of label shares, or Kolmogorov-Smirnov of numbers: 0 alike, 1 nothing in common
    by_chance: float  # what equal sources stay below in 99 of 100 draws
    p: float


class AuditFinding(Part):
    """One thing about the rows that a person should know. Names rows by their ids; holds no text of theirs."""

    kind: str  # leakage, near_leakage, conflicts, duplicates, …; a rule `max_<kind>` of the recipe refers to it
    split: str
    other: str | None = None  # the split that this one was compared with, where there are two
    level: Literal["warning", "note"]  # misleads; good to know
    count: int  # rows of the split that are concerned
    rows: int  # of the split
    text: str  # a sentence without the rows
    remedy: str = ""
    ids: list[str] = Field(default_factory=list)  # the first 20 rows that are concerned
    partner_ids: list[str] = Field(default_factory=list)  # the row of `other` (or of the split) that each goes with
    places: list[str] = Field(default_factory=list)  # the same rows in words: "test.csv, line 5 = train.csv, line 8"


class Audit(Part):
    """What is odd about the rows, the most important first. The shares that a rule can limit are count / rows."""

    findings: list[AuditFinding] = Field(default_factory=list)
    splits: dict[str, SplitAudit] = Field(default_factory=dict)
    shifts: list[Shift] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)  # further sentences
    method: str = ""  # how near-duplicates were found, with the share that is missed
    seconds: float | None = None


class Names(Part):
    """A set of weights."""

    count: int = 0
    names: list[str] = Field(default_factory=list)


class HeadSwap(Part):
    """Which weights of the model come from the checkpoint, which are new, which of the checkpoint were left out."""

    reused: Names = Field(default_factory=Names)
    new: Names = Field(default_factory=Names)
    dropped: Names = Field(default_factory=Names)


class ModelFacts(Part):
    """What a reader needs to call the exported model."""

    checkpoint: str
    revision: str | None = None  # the commit that was loaded, where the Hub gave one
    architecture: str = ""
    parameters: int = 0
    trainable_parameters: int = 0
    unseen_tokens: int = 0  # of the vocabulary; in no training row, so their embeddings keep their pretrained values
    tokenizer: str | None = None  # its class and how many tokens it knows
    max_length: int | None = None  # tokens of an input; what is longer was cut or read in windows
    pipeline: str = ""  # the word for transformers.pipeline and for the card
    problem: str | None = None
    labels: list[str] = Field(default_factory=list)
    snippet: str = ""  # Python that calls the model; `{model}` stands for its id or folder
    notes: list[str] = Field(default_factory=list)  # sentences for the card: thresholds, windows, rules of decoding


class Training(Part):
    """What the loop did, over all processes and all resumes."""

    steps: int = 0
    epochs: float = 0.0
    examples: int = 0
    tokens: int = 0  # real ones, without padding
    padding_share: float | None = None  # of slots
    seconds: float = 0.0  # the loop with saving, without evaluation
    tokens_per_second: float | None = None
    seconds_to_first_step: float | None = None
    peak_memory_bytes: int | None = None
    resumed_from: list[int] = Field(default_factory=list)  # steps
    inexact: list[str] = Field(default_factory=list)  # why a resume could not be bit for bit
    sample_log_sha256: str | None = None


class Best(Part):
    """The checkpoint that is exported."""

    step: int
    metric: str
    value: float


class Emissions(Part):
    """CodeCarbon's estimate over all nodes; None with `reason` where nothing could be measured."""

    kg: float | None = None
    kwh: float | None = None
    seconds: float | None = None
    country: str | None = None
    method: str | None = None
    reason: str | None = None
    lower_bound: bool = False  # a killed process kept only what its last checkpoint had
    phases: dict[str, dict[str, float | None]] = Field(default_factory=dict)  # train, evaluate -> kg, kwh, seconds


class Efficiency(Part):
    """What it takes to run a model on the machine of `hardware`, in fp32 and with `threads` threads.

    Latency is that of one row at a time, from text to output, over at most 50 rows of the split and about 10 s. The
    peak is that of the whole process (on a GPU: of its allocator) from loading the model on, with what checkpoints
    evaluated before it in the same process have left.
    """

    parameters: int
    size_bytes: int  # of the weights on disk
    rows_per_second: float  # in batches; where texts are generated, the loss is computed as well
    latency_rows: int
    latency_p50_seconds: float
    latency_p95_seconds: float
    first_token_p50_seconds: float | None = None  # where text is generated
    per_token_p50_seconds: float | None = None  # after the first
    peak_memory_bytes: int
    threads: int
    energy_kwh: float | None = None  # CodeCarbon's estimate for the evaluation of the split; None where it has none


class Tracker(Part):
    """A run as a tracker knows it."""

    id: str | None = None
    url: str | None = None
    mode: str | None = None
    note: str | None = None  # for example how to sync an offline run


class ExportedFile(Part):
    size_bytes: int
    sha256: str


class Export(Part):
    """The files of `export/`."""

    files: dict[str, ExportedFile] = Field(default_factory=dict)
    verified: bool = False
    max_score_difference: float | None = None


class Published(Part):
    """Where the export went."""

    repo_id: str
    commit: str
    url: str | None = None
    private: bool | None = None
    pull_request: str | None = None
    verified: bool = False


class RunRecord(Part):
    """All of `run.json`."""

    format: Literal[1] = FORMAT
    status: Status = "running"
    exit_code: int | None = None
    error: str | None = None
    command: str = ""
    started: str = ""  # ISO 8601, UTC
    ended: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)  # cpu, cores, memory_bytes, gpus, platform
    processes: int = 1
    precision: str = "fp32"
    seed: int | None = None
    recipe_sha256: str = ""
    chosen: dict[str, Any] = Field(default_factory=dict)  # what `auto` decided, with the measurement
    model: ModelFacts | None = None
    data: dict[str, SplitFacts] = Field(default_factory=dict)
    audit: Audit | None = None
    head_swap: HeadSwap | None = None
    training: Training | None = None
    best: Best | None = None
    results: dict[str, SplitResults] = Field(default_factory=dict)
    baselines: dict[str, dict[str, SplitResults]] = Field(default_factory=dict)  # name -> split -> results
    analysis: dict[str, Analysis] = Field(default_factory=dict)  # split -> where the model fails on it
    emissions: Emissions | None = None
    efficiency: Efficiency | None = None  # of an evaluation
    warnings: list[str] = Field(default_factory=list)  # why the results of an evaluation may not be what they seem
    tracking: dict[str, Tracker] = Field(default_factory=dict)
    export: Export | None = None
    published: Published | None = None

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Fields that this version does not have, of an older or a later one, are left aside.

        Raises FileNotFoundError, or ValueError with one line that says why the file is no record of format 1.
        """
        text = path.read_text(encoding="utf-8")
        try:
            return cls.model_validate_json(text, extra="ignore")
        except ValidationError as error:
            raise ValueError(_unreadable(text, error)) from error

    def write(self, path: Path) -> None:
        """By temporary file and rename: a reader sees the previous record or this one."""
        write_atomic(path, self.model_dump_json(indent=2) + "\n")


def _unreadable(text: str, error: ValidationError) -> str:
    """Why the text is no record of format 1: what wrote it, and the first field that is wrong."""
    try:
        found = json.loads(text)
    except ValueError:
        return "damaged, it is not JSON: restore it"
    number = found.get("format") if isinstance(found, dict) else None
    if isinstance(number, int) and number > FORMAT:
        return f"a record of format {number}, and this version reads format {FORMAT}: update headswap{_writer(found)}"
    first = error.errors()[0]
    return f"not a record of format {FORMAT}: {'.'.join(map(str, first['loc']))}: {first['msg']}{_writer(found)}"


def _writer(found: Any) -> str:
    versions = found.get("versions") if isinstance(found, dict) else None
    version = versions.get("headswap") if isinstance(versions, dict) else None
    return f" (written by headswap {version})" if isinstance(version, str) else ""


def write_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text by temporary file, fsync and rename. Raises OSError."""
    with whole_file(path) as file:
        file.write(text)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file that is there, under its name, once the block has ended well. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():  # a file that only its owner may read stays one
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
