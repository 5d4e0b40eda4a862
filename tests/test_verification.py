"""The stored predictions against those of a fresh process."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_export
from hub_server import HubServer

from finetune.errors import PublishError
from finetune.fresh import Reply
from finetune.publish.verification import compare, load_remote, read_cases, verify
from finetune.tasks.base import Case

TASK = "text-classification"


def ranked(**scores):
    return [{"label": label, "score": score} for label, score in scores.items()]


# ------------------------------------------------------------------------------------------------------------ compare


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        (ranked(a=0.75, b=0.25), ranked(a=0.75003, b=0.24997), 3e-5),
        (ranked(a=0.50001, b=0.49999), ranked(b=0.50001, a=0.49999), 2e-5),  # a tie sorted the other way
        (
            [{"word": "EU", "start": 0, "end": 2, "score": 0.9}],
            [{"word": "EU", "start": 0, "end": 2, "score": 0.9}],
            0.0,
        ),
        ({"answer": "x", "start": 3, "score": 0.5}, {"answer": "x", "start": 3, "score": 0.5}, 0.0),
        ([{"summary_text": "one"}], [{"summary_text": "one"}], 0.0),
        ([{"label": "score", "score": 1234.5}], [{"label": "score", "score": 1234.55}], 0.05),  # 1e-4 of the value
        (1, 1.0, 0.0),
        ([], [], 0.0),
        ([[[0.1, 0.2]]], [[[0.1, 0.2]]], 0.0),
    ],
)
def test_what_agrees(expected, found, difference):
    largest, what = compare(expected, found)
    assert what is None
    assert largest == pytest.approx(difference, abs=1e-9)


@pytest.mark.parametrize(
    ("expected", "found", "says"),
    [
        (ranked(a=0.7, b=0.3), ranked(a=0.7002, b=0.2998), "[0].score is 0.7002"),
        (ranked(a=0.7), ranked(b=0.7), "[0].label"),
        (ranked(a=0.7, b=0.3), ranked(a=0.7), "the output"),
        (ranked(a=0.5, b=0.5), ranked(a=0.5, c=0.5), "[1].label"),
        ([{"word": "EU", "start": 0}], [{"word": "EU", "start": 1}], "[0].start is 1, 0 was stored"),
        ([{"summary_text": "one"}], [{"summary_text": "one "}], "[0].summary_text"),
        ({"answer": ""}, {"answer": "", "score": 1.0}, "the output"),
        (0.5, float("nan"), "the score is nan"),
        (0.5, "0.5", "the output"),
        (0.5, None, "the output"),
        (1, True, "the output"),
        (3.0, 3.001, "the score"),
    ],
)
def test_what_differs_and_where(expected, found, says):
    assert says in compare(expected, found)[1]


# -------------------------------------------------------------------------------------------------------- stored cases


def test_cases_come_back_as_they_were_stored(tmp_path):
    rows = [
        {"inputs": "line\u2028separator", "kwargs": {"truncation": True}, "expected": [{"label": "a", "score": 0.5}]},
        {"inputs": {"text": "x", "text_pair": ""}, "kwargs": {}, "expected": []},
    ]
    path = tmp_path / "verification.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_cases(path) == [Case(row["inputs"], row["kwargs"], row["expected"]) for row in rows]


@pytest.mark.parametrize("text", [None, "", '{"inputs": "x"}\n', "[]\n", "no json\n"])
def test_unusable_cases_are_an_error_that_names_the_file(tmp_path, text):
    path = tmp_path / "verification.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PublishError, match=r"verification\.jsonl"):
        read_cases(path)


# ------------------------------------------------------------------------------------------------- in a fresh process


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An export and its cases."""
    folder = tiny_export.build(tmp_path_factory.mktemp("run") / "export")
    answers = tiny_export.answers(folder)
    return folder, [Case(t, tiny_export.KWARGS, a) for t, a in zip(tiny_export.TEXTS, answers, strict=True)]


@pytest.fixture
def export(tiny, tmp_path):
    """A copy of the export to change."""
    return shutil.copytree(tiny[0], tmp_path / "export")


def test_the_export_gives_what_the_model_gave_without_a_network(tiny, monkeypatch):
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_loopback")
        result = verify(*tiny, TASK)
        assert hub.requests == []
    assert result.count == len(tiny_export.TEXTS)
    assert result.max_score_difference < 1e-5
    assert set(result.versions) == {"python", "torch", "transformers"}


@pytest.fixture
def environ(monkeypatch):
    """The environment that a fresh process is given; it answers nothing."""
    seen = {}
    monkeypatch.setattr("finetune.fresh.ask", lambda *_, environ, **__: seen.update(environ) or Reply(None, 1, ""))
    changes = {"HF_TOKEN": "hf_secret", "HF_TOKEN_PATH": "/x", "HF_HOME": "/x", "HF_HUB_CACHE": "/x"}
    for name, value in (changes | {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1", "TRANSFORMERS_OFFLINE": "1"}).items():
        monkeypatch.setenv(name, value)
    return seen


def test_the_process_for_an_export_is_offline_without_tokens_caches_and_launcher(tiny, environ):
    with pytest.raises(PublishError):
        verify(*tiny, TASK)
    assert environ["HF_HUB_OFFLINE"] == "1"
    assert not Path(environ["HF_HOME"]).exists()  # fresh, and gone
    assert not environ.keys() & {"HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "WORLD_SIZE", "ACCELERATE_USE_CPU"}


@pytest.mark.parametrize("token", [None, "hf_secret"])
def test_the_process_for_a_repository_is_online_with_a_token_only_if_given(tiny, environ, token):
    with pytest.raises(PublishError):
        load_remote("user/model", "abc", tiny[1], TASK, token=token)
    assert environ.get("HF_TOKEN") == token
    assert not environ.keys() & {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH", "HF_HUB_CACHE"}


def test_other_weights_are_refused(export, tiny):
    from safetensors.torch import load_file, save_file

    weights = load_file(export / "model.safetensors")
    weights["classifier.bias"] += weights["classifier.bias"].new_tensor([0.1, 0.0, 0.0])
    save_file(weights, export / "model.safetensors", {"format": "pt"})
    with pytest.raises(PublishError) as caught:
        verify(export, tiny[1], TASK)
    message = str(caught.value)
    assert "a fresh process does not give the stored predictions (6 of 6 cases differ)" in message
    assert "case 1: [0].score is " in message
    assert 'input:  "the film was good"' in message
    assert "stored: [" in message
    assert "fresh:  [" in message


def test_other_label_names_are_refused(export, tiny):
    config = json.loads((export / "config.json").read_text())
    config["id2label"] = {"0": "positive", "1": "neutral", "2": "negative"}
    (export / "config.json").write_text(json.dumps(config))
    with pytest.raises(PublishError, match=r"case 1: \[0\]\.score"):
        verify(export, tiny[1], TASK)


def test_weights_that_load_in_half_precision_are_refused(export, tiny):
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    with pytest.raises(PublishError, match="float32, found bfloat16"):
        verify(export, tiny[1], TASK)


def test_a_call_that_fails_names_its_case(tiny, monkeypatch):
    error = {"stage": "call", "case": 5, "type": "RuntimeError", "message": "size of tensor"}
    monkeypatch.setattr("finetune.fresh.ask", lambda *_, **__: Reply({"error": error, "versions": {}}, 1, ""))
    with pytest.raises(PublishError, match=r"fails in case 6 of 6 of transformers\.pipeline") as caught:
        verify(*tiny, TASK)
    assert "RuntimeError: size of tensor" in str(caught.value)
    assert str(caught.value).endswith("… (10002 characters)")  # of the input


def test_a_process_that_dies_is_said_so(tiny, monkeypatch):
    monkeypatch.setattr("finetune.fresh.ask", lambda *_, **__: Reply(None, 1, "Traceback\nImportError: no torch"))
    with pytest.raises(PublishError, match=r"died \(exit code 1\): ImportError: no torch"):
        verify(*tiny, TASK)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named_without_starting_anything(export, tiny, name):
    (export / name).unlink()
    with pytest.raises(PublishError, match=rf"{name}: missing"):
        verify(export, tiny[1], TASK, limit_seconds=0.0)


def test_a_missing_shard_is_named(export, tiny):
    (export / "model.safetensors").rename(export / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (export / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(PublishError, match=r"model-00002-of-00002\.safetensors: missing, named in"):
        verify(export, tiny[1], TASK, limit_seconds=0.0)


@pytest.mark.parametrize(
    "setting",
    [
        {"auto_map": {"AutoConfig": "user/repo--configuration.Config"}},
        {"custom_pipelines": {"x": {"impl": "elsewhere.Pipeline", "pt": []}}},
        {"custom_pipelines": {"x": {"impl": "user/repo--ours.Pipeline", "pt": []}}},
    ],
)
def test_code_that_is_not_ours_is_never_run(export, tiny, setting):
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | setting))
    (export / "ours.py").write_text("")
    with pytest.raises(PublishError, match="code that did not come from here"):
        verify(export, tiny[1], TASK, modules=["ours.py"], limit_seconds=0.0)


def test_a_model_that_takes_too_long_is_stopped(tiny):
    with pytest.raises(PublishError, match="within 0 s; it was stopped"):
        verify(*tiny, TASK, limit_seconds=0.2)
