"""The program that calls a model as a stranger would."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_export

import finetune.publish.stranger

PROGRAM = Path(finetune.publish.stranger.__file__)
PIPELINE = """
import os
import sys
from transformers import TextClassificationPipeline

print("a library that prints")
os.write(1, b"and one that writes\\n")
try:
    import finetune
    FOUND = "finetune"
except ImportError:
    FOUND = "no finetune"

class Ours(TextClassificationPipeline):
    def postprocess(self, outputs, **kwargs):
        scores = outputs["logits"][0].softmax(-1)
        return {"found": FOUND, "tensor": scores, "number": scores.numpy()[0], "count": len(sys.path)}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An export with a custom pipeline of its own."""
    folder = tiny_export.build(tmp_path_factory.mktemp("export"))
    (folder / "ours.py").write_text(PIPELINE)
    config = json.loads((folder / "config.json").read_text())
    names = ["AutoModelForSequenceClassification"]
    config["custom_pipelines"] = {"our-task": {"impl": "ours.Ours", "pt": names}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ask(tmp_path, **document):
    """Exit code, and the one line on stdout."""
    asked = {"revision": None, "device": "cpu", "trust_remote_code": False, "cases": []} | document
    environ = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM)],
        check=False,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        env=environ | {"PYTHONPATH": str(PROGRAM.parent.parent)},
    )
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_one_line_of_json_whatever_the_code_of_the_model_does(model, tmp_path):
    cases = [{"inputs": "good film", "kwargs": {"truncation": True}}, {"inputs": ["bad", "plot"], "kwargs": {}}]
    code, answer = ask(tmp_path, model=str(model), task="our-task", trust_remote_code=True, cases=cases)
    assert code == 0
    assert answer.keys() == {"outputs", "dtype", "versions"}
    assert answer["dtype"] == "float32"
    (first,), (second, third) = answer["outputs"]
    assert first["found"] == "no finetune"
    assert len(first["tensor"]) == 3
    assert first["number"] == pytest.approx(first["tensor"][0])
    assert second["tensor"] != third["tensor"]


def test_code_of_a_model_is_not_run_unasked(model, tmp_path):
    code, answer = ask(tmp_path, model=str(model), task="our-task", cases=[{"inputs": "x", "kwargs": {}}])
    assert code == 1
    assert answer["error"]["stage"] == "load"
    assert answer["error"]["case"] is None
    assert "trust_remote_code" in answer["error"]["message"]


def test_a_call_that_fails_says_which(model, tmp_path):
    cases = [{"inputs": "x", "kwargs": {}}, {"inputs": 5, "kwargs": {}}]
    code, answer = ask(tmp_path, model=str(model), task="text-classification", cases=cases)
    assert code == 1
    assert (answer["error"]["stage"], answer["error"]["case"]) == ("call", 1)
    assert "versions" in answer
