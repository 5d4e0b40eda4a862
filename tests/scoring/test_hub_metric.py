"""A Hub metric by name, over real HTTP from a small server of this machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import evaluate
import numpy as np
import pytest

from finetune import metrics
from finetune.errors import RecipeError
from finetune.record import Interval

SCRIPT = """
import datasets
import evaluate


class Agreement(evaluate.Metric):
    def _info(self):
        value = datasets.Value("int64")
        features = datasets.Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        share = sum(a == b for a, b in zip(predictions, references)) / len(references)
        return RESULT
"""


class _Handler(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        self.asked.append(self.path)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where evaluate keeps metric code: one folder, since Python imports the package in it only once."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture
def hub(tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served as the Hub's collection, with fresh caches; NAME.py in it is evaluate-metric/NAME."""
    root = tmp_path / "hub"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(root)))
    threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    _Handler.asked.clear()
    monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", f"http://127.0.0.1:{server.server_port}/{{name}}")
    monkeypatch.setattr(evaluate.config, "DOWNLOADED_EVALUATE_PATH", tmp_path / "downloads")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", modules)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield root
    server.shutdown()
    server.server_close()


def test_value_comes_without_interval(hub: Path) -> None:
    (hub / "agreement_a.py").write_text(SCRIPT.replace("RESULT", '{"agreement_a": share}'))
    gold, predicted = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    found = metrics.sequence_single(["agreement_a", "accuracy"], gold, predicted, num_labels=2)
    assert found["agreement_a"] == Interval(value=0.75)
    assert found["accuracy"].value == 0.75
    assert list(found) == ["agreement_a", "accuracy"]
    metrics.check_names(["agreement_a", "accuracy"], "single")


def test_metric_of_several_numbers_is_refused(hub: Path) -> None:
    (hub / "agreement_b.py").write_text(SCRIPT.replace("RESULT", '{"x": share, "y": 1 - share}'))
    with pytest.raises(RecipeError, match=r"'agreement_b' gives no single number, but \['x', 'y'\]"):
        metrics.sequence_single(["agreement_b"], np.zeros(3, int), np.zeros(3, int), num_labels=2)


def test_metric_that_does_not_take_this_input_is_refused(hub: Path) -> None:
    (hub / "agreement_c.py").write_text(SCRIPT.replace("RESULT", '{"agreement_c": share}'))
    with pytest.raises(RecipeError, match="'agreement_c' does not fit this task"):
        metrics.texts(["agreement_c"], ["a"], ["b"])


def test_missing_package_is_named(hub: Path) -> None:
    (hub / "agreement_d.py").write_text("import no_such_package_anywhere\n" + SCRIPT)
    with pytest.raises(RecipeError, match="no_such_package_anywhere"):
        metrics.hub_metric("agreement_d")


def test_name_that_nobody_knows(hub: Path) -> None:
    with pytest.raises(RecipeError, match=r"'accurcy' is no metric of ours \(did you mean accuracy\?\).*no network"):
        metrics.check_names(["accurcy"], "single")


def test_no_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", "http://127.0.0.1:9/{name}")
    with pytest.raises(RecipeError, match="evaluate-metric/agreement_e could not be fetched"):
        metrics.hub_metric("agreement_e")


def test_nobody_else_is_told(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(evaluate.loading, "head_hf_s3", lambda *args, **_: told.append(args))
    (hub / "agreement_g.py").write_text(SCRIPT.replace("RESULT", '{"agreement_g": share}'))
    metrics.hub_metric("agreement_g")
    assert _Handler.asked
    assert told == []


def test_offline_mode_asks_nobody(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub / "agreement_f.py").write_text(SCRIPT.replace("RESULT", '{"agreement_f": share}'))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="offline mode"):
        metrics.hub_metric("agreement_f")
    assert _Handler.asked == []


@pytest.mark.parametrize("name", ["someone/metric", "./local", "../x", "local.py", "", "Accuracy"])
def test_code_from_elsewhere_is_never_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local.py").write_text("raise SystemExit('run')")
    with pytest.raises(RecipeError, match="by their plain name"):
        metrics.hub_metric(name)
