"""Does a fresh process, which knows only the exported model, give the predictions that were stored?"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import fresh
from finetune.errors import PublishError
from finetune.tasks.base import Case

__all__ = ["TOLERANCE", "Case", "VerifyResult", "compare", "load_remote", "read_cases", "verify"]

TOLERANCE = 1e-4  # between two scores; relative to the stored one where that is above 1
_STRANGER = Path(__file__).with_name("stranger.py")
_CACHES = (
    "HF_ASSETS_CACHE",
    "HF_DATASETS_CACHE",
    "HF_HUB_CACHE",
    "HF_MODULES_CACHE",
    "HF_XET_CACHE",
    "HUGGINGFACE_ASSETS_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "TRANSFORMERS_CACHE",
)
_TOKENS = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "WANDB_API_KEY")


@dataclass(frozen=True)
class VerifyResult:
    """`count` cases agreed; no score differed by more than `max_score_difference`."""

    count: int
    max_score_difference: float
    versions: Mapping[str, str]


def read_cases(path: Path) -> list[Case]:
    """The cases of a run's verification.jsonl. Raises PublishError when it is missing, empty or not of this form."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: expected the stored cases to verify the export with, found {error}; train again"
        raise PublishError(message) from error
    cases = []
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            row = json.loads(line)
            cases.append(Case(row["inputs"], dict(row["kwargs"]), row["expected"]))
        except (ValueError, KeyError, TypeError) as error:
            message = f'{path}, line {number}: expected {{"inputs", "kwargs", "expected"}}, found {line[:80]!r}'
            raise PublishError(message) from error
    if not cases:
        raise PublishError(f"{path}: no case to verify the export with; train again")
    return cases


def verify(
    export: Path,
    cases: Sequence[Case],
    task: str,
    *,
    modules: Collection[str] = (),
    device: str = "cpu",
    limit_seconds: float = 300.0,
) -> VerifyResult:
    """Load `export` as a stranger would, offline and with empty caches, and compare what it answers with the cases.

    task: the word for transformers.pipeline. modules: names of the inference modules that this package put into the
    export; only with one of them is remote code trusted. Raises PublishError when files are missing, when the model
    does not load in float32, and at the first case that differs: labels, texts, whole numbers and structure must be
    equal, scores within TOLERANCE.
    """
    problems = _missing(export, modules)
    if problems:
        raise PublishError(f"{export}: not a complete export\n" + "\n".join(f"  {line}" for line in problems))
    document = _document(str(export.resolve()), None, cases, task, modules, device)
    offline = {"HF_HUB_OFFLINE": "1", **dict.fromkeys(_TOKENS)}
    return _check(document, cases, offline, limit_seconds, str(export))


def load_remote(
    repo_id: str,
    revision: str,
    cases: Sequence[Case],
    task: str,
    *,
    token: str | None,
    modules: Collection[str] = (),
    device: str = "cpu",
    limit_seconds: float = 900.0,
) -> VerifyResult:
    """As `verify`, with commit `revision` of a repository on the Hub; `token` only where it is private."""
    document = _document(repo_id, revision, cases, task, modules, device)
    online = {**dict.fromkeys(_TOKENS), "HF_HUB_OFFLINE": None, "TRANSFORMERS_OFFLINE": None, "HF_TOKEN": token}
    return _check(document, cases, online, limit_seconds, f"{repo_id} at commit {revision}")


def _document(
    model: str, revision: str | None, cases: Sequence[Case], task: str, modules: Collection[str], device: str
) -> dict[str, Any]:
    calls = [{"inputs": case.inputs, "kwargs": dict(case.kwargs)} for case in cases]
    where = {"model": model, "revision": revision, "task": task, "device": device}
    return {**where, "trust_remote_code": bool(modules), "cases": calls}


def _check(
    document: Mapping[str, Any], cases: Sequence[Case], changes: Mapping[str, str | None], limit: float, name: str
) -> VerifyResult:
    with tempfile.TemporaryDirectory(prefix="finetune-verify-") as folder:
        home = os.path.join(folder, "huggingface")  # noqa: PTH118
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environ = fresh.environment({**dict.fromkeys(_CACHES), **changes, **quiet, "HF_HOME": home})
        reply = fresh.ask(_STRANGER, document, environ=environ, folder=Path(folder), limit_seconds=limit)
    answer = _answered(reply, cases, limit, name)
    if answer["dtype"] != "float32":
        message = f"{name}: expected weights that load in float32, found {answer['dtype']}; export them in float32"
        raise PublishError(message)
    return VerifyResult(len(cases), _agree(cases, answer["outputs"], name), answer["versions"])


def _answered(reply: fresh.Reply, cases: Sequence[Case], limit: float, name: str) -> dict[str, Any]:
    """The answer, when it holds outputs; else a PublishError that says what the fresh process ran into."""
    if reply.code is None:
        raise PublishError(f"{name}: a fresh process did not load and call it within {limit:.0f} s; it was stopped")
    if reply.answer is None:
        last = reply.errors.rsplit("\n", 1)[-1]
        raise PublishError(f"{name}: the fresh process that loads it died (exit code {reply.code}): {last}")
    if "error" not in reply.answer:
        return reply.answer
    error = reply.answer["error"]
    what = (
        "cannot be loaded by" if error["stage"] == "load" else f"fails in case {error['case'] + 1} of {len(cases)} of"
    )
    message = f"{name}: {what} transformers.pipeline in a fresh process\n  {error['type']}: {error['message']}"
    if error["stage"] == "call":
        message += f"\n  input:  {_short(cases[error['case']].inputs)}"
    raise PublishError(message)


def _agree(cases: Sequence[Case], outputs: Sequence[Any], name: str) -> float:
    """The largest difference of two scores. Raises PublishError with the first case that differs."""
    results = [compare(case.expected, output) for case, output in zip(cases, outputs, strict=True)]
    wrong = [number for number, (_, what) in enumerate(results) if what is not None]
    if not wrong:
        return max((difference for difference, _ in results), default=0.0)
    first = wrong[0]
    raise PublishError(
        f"{name}: a fresh process does not give the stored predictions ({len(wrong)} of {len(cases)} cases differ)\n"
        f"  case {first + 1}: {results[first][1]}\n"
        f"  input:  {_short(cases[first].inputs)}\n"
        f"  stored: {_short(cases[first].expected)}\n"
        f"  fresh:  {_short(outputs[first])}\n"
        "  What a reader of the model page would get is not what was evaluated. Undo what was changed in the export;"
        " if nothing was, train again with the library versions that are installed now"
    )


def compare(expected: Any, found: Any) -> tuple[float, str | None]:
    """The largest difference between two scores, and the first thing that is not equal (None: they agree).

    Lists whose items carry a score are compared item by item whatever their order: ties may be sorted either way.
    """
    largest, first = 0.0, None
    for difference, what in _differences(expected, found, ""):
        largest = max(largest, difference)
        first = first or what
    return largest, first


def _differences(expected: Any, found: Any, at: str) -> Iterator[tuple[float, str | None]]:
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        for key, value in expected.items():
            yield from _differences(value, found[key], f"{at}.{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        yield from _list_differences(expected, found, at)
    elif _is_score(expected, found):
        difference = 0.0 if expected == found else abs(expected - found)
        if difference <= TOLERANCE * max(1.0, abs(expected)):
            yield difference, None
        else:  # NaN comes here, too
            yield difference, f"{at.removeprefix('.') or 'the score'} is {found!r}, {expected!r} was stored"
    elif type(expected) is not type(found) or expected != found:
        yield 0.0, f"{at.removeprefix('.') or 'the output'} is {_short(found)}, {_short(expected)} was stored"


def _list_differences(expected: list[Any], found: list[Any], at: str) -> Iterator[tuple[float, str | None]]:
    ours, theirs = _by_name(expected), _by_name(found)
    if ours is not None and theirs is not None and ours.keys() == theirs.keys():
        expected, found = list(ours.values()), [theirs[name] for name in ours]
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        yield from _differences(one, other, f"{at}[{number}]")


def _by_name(items: list[Any]) -> dict[str, Any] | None:
    """Scored items by everything but their score; None where that does not tell them apart."""
    if not all(isinstance(item, dict) and isinstance(item.get("score"), float) for item in items):
        return None
    names = [json.dumps({key: item[key] for key in sorted(item) if key != "score"}) for item in items]
    return dict(zip(names, items, strict=True)) if len(set(names)) == len(names) else None


def _is_score(expected: Any, found: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (expected, found))
    return numbers and (isinstance(expected, float) or isinstance(found, float))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


def _foreign_code(config: Path, modules: Collection[str]) -> list[str]:
    """Code that config.json makes a reader run and that this package did not put there."""
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        classes = [row["impl"] for row in content.get("custom_pipelines", {}).values()]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        return [f"{config.name}: not a model's configuration ({error!r})"]
    foreign = sorted({f"{name.rpartition('.')[0]}.py" for name in classes} - set(modules))
    foreign += ["auto_map"] if "auto_map" in content else []
    return [f"config.json: names code that did not come from here ({name}); it is never run" for name in foreign]


def _missing(export: Path, modules: Collection[str]) -> list[str]:
    """What an export needs and this one does not have."""
    if not export.is_dir():
        return ["no such folder; train first"]
    problems = [f"{name}: missing" for name in ("config.json", *modules) if not (export / name).is_file()]
    problems += _foreign_code(export / "config.json", modules)
    if not any((export / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")):
        problems.append("tokenizer.json: missing, and no other vocabulary either")
    index = export / "model.safetensors.index.json"
    if not index.is_file():
        return problems if (export / "model.safetensors").is_file() else [*problems, "model.safetensors: missing"]
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        return [*problems, f"{index.name}: not an index of weights ({error!r})"]
    return problems + [f"{name}: missing, named in {index.name}" for name in shards if not (export / name).is_file()]
