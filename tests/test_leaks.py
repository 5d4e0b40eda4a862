"""One whole run with hostile names, marked rows and secrets, pushed to a Hub on 127.0.0.1: what leaves the machine."""

import getpass
import json
import os
import platform
import signal
import threading

import processes
import pytest
import test_card
import tiny_run
from hub_server import HubServer

from finetune.record import RunRecord

REPO = "user/model"
LABELS = ('<script>alert("x")</script>', "| `a` **b** ---\n[c](javascript:d)")
SECRETS = {"HF_TOKEN": "hf_" + "CanaryOfTheHub" * 3, "WANDB_API_KEY": "c0ffee" * 6 + "babe"}
PRIVATE = ("canarytext", "canaryid", "canaryplace", "canaryproject")
PUSHED = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
COMMIT = "POST .*/commit/main"


def push_without_loading_again(rank):
    from finetune import publish

    publish.verify_pushed = lambda published, *_, **__: published


def be_asked_to_stop_while_pushing(rank):
    from finetune import publish

    push_without_loading_again(rank)
    later = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
    processes.before(publish, "push", lambda *_, **__: later.start())


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_checkpoint):
    """The run folder, the Hub that it was pushed to by the third start, and what the record said after each."""
    folder = tmp_path_factory.mktemp("canaryplace")
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            (f"{text} canarytext{split}", LABELS[label == "pos"], f"canaryid{place}")
            for place, (text, label) in enumerate(tiny_run.sentences(20, seed=number))
        ]
        tiny_run.write_csv(folder / f"{split}.csv", ("text", "label", "id"), rows)
    text = "track: {wandb: {project: canaryproject, mode: offline}}\nhub: {repo_id: user/model, private: true}\n"
    path = tiny_run.write_recipe(folder, tiny_checkpoint, text, columns="{text: text, label: label, id: id}", epochs=1)
    with HubServer(token=SECRETS["HF_TOKEN"]) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(folder / "cache"))
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        hub.inject(COMMIT, mode="hang")
        hub.inject(COMMIT, status=403, message="no")
        states = []
        for fault in (be_asked_to_stop_while_pushing, push_without_loading_again, push_without_loading_again):
            codes, errors = processes.train(path, fault, count=1)
            record = RunRecord.read(folder / "out" / "run.json")
            states.append((codes, record.status, record.exit_code, record.training.steps, errors[0]))
        yield folder / "out", hub, states


def test_the_same_command_makes_a_push_that_is_owed_and_nothing_else(published):
    out, hub, states = published
    assert [state[:4] for state in states] == [
        ([75], "finished", 75, 3),
        ([3], "finished", 3, 3),
        ([0], "published", 0, 3),
    ]
    assert states[0][4] == "stopped (SIGTERM); the same command continues\n"
    assert "Nothing is lost: the export is complete" in states[1][4]
    assert hub.files(REPO) == {
        path.relative_to(out / "export").as_posix(): path.read_bytes()
        for path in (out / "export").rglob("*")
        if path.is_file()
    }


def test_nothing_private_is_pushed(published):
    out, hub, _ = published
    files = hub.files(REPO)
    assert set(files) == PUSHED
    said = {**files, **{request.path: request.body for request in hub.requests}}
    private = [*PRIVATE, *SECRETS.values(), str(out.parent), platform.node(), f"/{getpass.getuser()}/"]
    found = {(name, text) for name, content in said.items() for text in private if text.encode() in content}
    assert found == set()


def test_secrets_are_in_no_file_of_the_run(published):
    out, _, _ = published
    files = [path for path in out.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files for secret in SECRETS.values() if secret.encode() in path.read_bytes()] == []


def test_labels_come_through_as_they_are_and_the_card_shows_them_as_text(published):
    out, hub, _ = published
    assert set(json.loads(hub.files(REPO)["config.json"])["id2label"].values()) == set(LABELS)
    lines = [json.loads(line) for line in (out / "predictions" / "test.jsonl").read_text().splitlines()]
    assert {line["gold"] for line in lines} == set(LABELS)
    card = hub.files(REPO)["README.md"].decode()
    found = list(test_card.walk(test_card.tokens(card)))
    assert "table_open" in {token.type for token in found}
    assert not {"html_block", "html_inline"} & {token.type for token in found}
    links = [str(token.attrs["href"]) for token in found if token.type == "link_open"]
    assert [link for link in links if not link.startswith(test_card.ALLOWED)] == []
