"""What may leave the machine, by name and by content."""

import re

import pytest

from finetune.errors import PublishError
from finetune.publish.allowlist import allowed, pattern, redact

TOKEN = "hf_" + "Q7" * 17


@pytest.fixture(autouse=True)
def _no_secrets_of_this_machine(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    header = b'{"__metadata__":{"format":"pt"}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\xff" * 10)
    (folder / "README.md").write_text("# Card\n\nSee https://huggingface.co/home/docs and </p>.\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer.json").write_text('{"vocab": ["/home/", "/tmp/x", "hf_"]}')
    return folder


def test_a_plain_export_is_allowed_and_sorted(export):
    (export / "figures").mkdir()
    (export / "figures" / "reliability.png").write_bytes(b"\x89PNG")
    (export / "adapter").mkdir()
    (export / "adapter" / "adapter_config.json").write_text("{}")
    names = [path.relative_to(export).as_posix() for path in allowed(export)]
    assert names == [
        "README.md",
        "adapter/adapter_config.json",
        "config.json",
        "figures/reliability.png",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "train.csv",
        "predictions/test.jsonl",
        "emissions.csv",
        ".tmp-123/model.safetensors",
        ".env",
        "training_args.bin",
        "optimizer.bin",
        "checkpoint-5/config.json",
        "model.safetensors.bak",
        "figures/../notes.txt",
        "figures/.hidden.png",
        "figures/another.png",
        "question_answering.py",
        "model-1-of-2.safetensors",
        "README.md\n",
    ],
)
def test_any_other_name_is_refused_and_named(export, name):
    path = export / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    with pytest.raises(PublishError) as caught:
        allowed(export)
    assert re.search(r"1 of its files must not be published", str(caught.value))
    assert path.name.strip() in str(caught.value)


def test_no_export_at_all(tmp_path):
    with pytest.raises(PublishError, match="no such folder"):
        allowed(tmp_path / "export")


def test_all_problems_come_in_one_message(export):
    for name in ("train.csv", ".env", "emissions.csv"):
        (export / name).write_text("x")
    with pytest.raises(PublishError) as caught:
        allowed(export)
    assert all(name in str(caught.value) for name in ("train.csv", ".env", "emissions.csv"))


def test_our_inference_module_is_allowed_by_name_only(export):
    (export / "question_answering.py").write_text("import torch\n")
    assert export / "question_answering.py" in allowed(export, ["question_answering.py"])
    (export / "other.py").write_text("")
    with pytest.raises(PublishError, match=r"other\.py"):
        allowed(export, ["question_answering.py"])


@pytest.mark.parametrize("kind", ["file", "folder", "dangling"])
def test_links_are_refused(export, tmp_path, kind):
    target = tmp_path / "elsewhere"
    if kind == "file":
        target.write_text("{}")
    elif kind == "folder":
        target.mkdir()
        (target / "reliability.png").write_bytes(b"")
    (export / ("figures" if kind == "folder" else "generation_config.json")).symlink_to(target)
    with pytest.raises(PublishError, match="a link"):
        allowed(export)


@pytest.mark.parametrize(
    "path",
    [
        "/home/jane/data/x.csv",
        "/Users/jane/models",
        "/mnt/disk/runs/a",
        "/root/x",
        "file:///etc/x",
        r"C:\Users\jane",
        r"C:\\Users\\jane",
    ],
)
def test_a_path_of_a_machine_in_a_text_is_refused(export, path):
    (export / "config.json").write_text(f'{{"_name_or_path": "{path}"}}')
    with pytest.raises(PublishError, match="path of this machine") as caught:
        allowed(export)
    assert "config.json" in str(caught.value)


def test_the_run_folder_is_found_in_any_text_even_a_vocabulary(export):
    (export / "tokenizer.json").write_text(f'{{"name": "{export.parent.resolve()}/x"}}')
    with pytest.raises(PublishError, match="path of this machine"):
        allowed(export)


def test_what_looks_like_a_token_is_refused_everywhere(export):
    for name in ("README.md", "tokenizer.json"):
        before = (export / name).read_text()
        (export / name).write_text(f"{before} {TOKEN}")
        with pytest.raises(PublishError, match="access token") as caught:
            allowed(export)
        assert name in str(caught.value)
        assert TOKEN not in str(caught.value)
        (export / name).write_text(before)


def test_a_token_in_the_metadata_of_weights_is_refused(export):
    header = f'{{"__metadata__":{{"note":"{TOKEN}"}}}}'.encode()
    (export / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(PublishError, match=r"model\.safetensors"):
        allowed(export)


@pytest.mark.parametrize("where", ["HF_TOKEN", "WANDB_API_KEY", "MY_SERVICE_SECRET", "login store"])
def test_secrets_of_this_machine_are_refused_whatever_they_look_like(export, tmp_path, monkeypatch, where):
    secret = "plain words without any form"
    if where == "login store":
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(secret + "\n")
    else:
        monkeypatch.setenv(where, secret)
    (export / "README.md").write_text(f"# Card\n\n{secret}\n")
    with pytest.raises(PublishError, match="access token"):
        allowed(export)
    assert redact(f"it was {secret}!") == "it was ***!"


def test_an_innocent_setting_is_no_secret(export, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "Card")
    monkeypatch.setenv("DB_PASSWORD", "bert")
    assert allowed(export)


def test_tokens_are_taken_out_of_messages():
    assert redact(f"token {TOKEN} refused") == "token *** refused"


def test_the_pattern_covers_whole_names():
    names = re.compile(pattern(["question_answering.py"]))
    for name in ("model-00001-of-00002.safetensors", "spiece.model", "question_answering.py", "figures/curves.png"):
        assert names.fullmatch(name)
    for name in ("questionXanswering.py", "README.md.orig", "sub/README.md", "pytorch_model.bin"):
        assert not names.fullmatch(name)
