"""Publishing over real HTTP to a Hub on 127.0.0.1: what arrives, what the user is told, and that it can be repeated."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny_export
from hub_server import HubServer

import finetune
from finetune import publish
from finetune.errors import PublishError, RecipeError
from finetune.publish import Patience, preflight, push, verify_pushed
from finetune.tasks.base import Case

TOKEN = "hf_" + "Q7" * 17
CANARY = "canary-" + "x1" * 20
REPO = "user/model"
QUICK = Patience(request_seconds=5.0, retry_seconds=30.0, wait_seconds=0.05, total_seconds=90.0)
INFO, CREATE, TREE = r"GET /api/models/user/model$", "POST /api/repos/create", "GET .*/tree/"
COMMIT, CHECK = "POST .*/commit/main", "GET .*/revision/"
REQUESTS = {
    "info": INFO,
    "create": CREATE,
    "tree": TREE,
    "card": "POST /api/validate-yaml",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "put": "PUT /lfs/",
    "verify": "POST .*/objects/verify",
    "commit": COMMIT,
    "check": CHECK,
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    changes = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": CANARY, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    for name, value in (changes | {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def hub(monkeypatch):
    with HubServer(token=TOKEN, orgs=("team",)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def export(tmp_path):
    """An export that no library can load, but a Hub can store."""
    folder = tmp_path / "runs" / "demo" / "export"
    (folder / "adapter").mkdir(parents=True)
    (folder / "README.md").write_text(tiny_export.CARD)
    (folder / "config.json").write_text("{}")
    (folder / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}" + bytes(range(256)) * 40)
    return folder


def content(export):
    return {path.relative_to(export).as_posix(): path.read_bytes() for path in export.rglob("*") if path.is_file()}


def commits(hub, repo=REPO):
    """Titles of what was committed to main after the repository was made, newest first."""
    found, titles = hub.repos[repo], []
    commit = found.resolve("main")
    while commit.parent is not None:
        titles.append(commit.title)
        commit = found.commits[commit.parent]
    return titles


def paths(hub, pattern):
    return [request.path for request in hub.requests if re.search(pattern, f"{request.method} {request.path}")]


def refusal(export, *args, **kwargs):
    """The message of a push that fails; it always says that nothing is lost and how to go on."""
    before = content(export)
    with pytest.raises(PublishError) as caught:
        push(export, *args, **({"patience": QUICK} | kwargs))
    message = str(caught.value)
    assert content(export) == before
    assert "Traceback" not in message
    assert TOKEN not in message
    assert f"Nothing is lost: the export is complete. To publish it: finetune push {export.parent}" in message
    return message


# --------------------------------------------------------------------------------------------------- when all goes well


@pytest.mark.parametrize("engine", ["lfs", "xet"])
def test_one_commit_holds_exactly_the_export_and_a_repetition_makes_none(hub, export, monkeypatch, engine):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", str(int(engine == "lfs")))
    published = push(export, REPO, patience=QUICK)
    assert hub.files(REPO) == content(export)
    assert commits(hub) == ["Publish the fine-tuned model"]
    assert bool(paths(hub, "PUT /lfs/")) == (engine == "lfs")
    assert bool(paths(hub, "/v1/xorbs")) == (engine == "xet")
    assert (published.repo_id, published.url, published.verified) == (REPO, f"{hub.url}/{REPO}", False)
    assert published.private is True
    assert hub.repos[REPO].private
    hub.requests.clear()
    assert push(export, REPO, patience=QUICK) == published
    assert paths(hub, "POST|PUT") == []


def test_only_what_changed_is_sent_and_what_went_is_deleted_but_foreign_files_stay(hub, export):
    old = {
        "notes.txt": b"theirs",
        "vocab.txt": b"old",
        "model-00001-of-00002.safetensors": b"old",
        "config.json": b"{}",
    }
    hub.create(REPO, private=True, files=old)
    push(export, REPO, patience=QUICK)
    assert hub.files(REPO) == content(export) | {"notes.txt": b"theirs"}
    (body,) = [request.body for request in hub.requests if "/commit/" in request.path]
    assert b"config.json" not in body.replace(b"adapter_config.json", b"")
    assert b"deletedFile" in body
    (export / "adapter" / "adapter_config.json").unlink()
    push(export, REPO, patience=QUICK)
    assert "adapter/adapter_config.json" not in hub.files(REPO)
    assert len(commits(hub)) == 2


def test_long_listings_are_read_to_their_end(hub, export):
    hub.page_size = 2
    hub.create(REPO, private=True, files={f"vocab{n}.txt": b"theirs" for n in range(5)} | {"vocab.txt": b"old"})
    push(export, REPO, patience=QUICK)
    assert "vocab.txt" not in hub.files(REPO)
    assert len(hub.files(REPO)) == len(content(export)) + 5


def test_a_pull_request_is_made_once(hub, export):
    hub.create(REPO, private=True, files={"config.json": b"other"})
    first = push(export, REPO, create_pr=True, patience=QUICK)
    assert first.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert commits(hub) == []
    assert hub.files(REPO, "refs/pr/1") == content(export)
    assert push(export, REPO, create_pr=True, patience=QUICK) == first
    assert len(hub.repos[REPO].pulls) == 1
    hub.repos[REPO].pulls[0]["status"] = "closed"
    assert push(export, REPO, create_pr=True, patience=QUICK).pull_request == f"{hub.url}/{REPO}/discussions/2"


def test_a_pull_request_whose_answer_was_lost_is_made_once(hub, export):
    hub.create(REPO, private=True)
    hub.inject(COMMIT, mode="lose")
    assert push(export, REPO, create_pr=True, patience=QUICK).pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert len(hub.repos[REPO].pulls) == 1


def test_the_login_store_is_enough(hub, export, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    push(export, REPO, patience=QUICK)
    assert hub.files(REPO) == content(export)


@pytest.mark.parametrize("engine", ["lfs", "xet"])
def test_secrets_go_nowhere_but_into_the_authorization_header(hub, export, monkeypatch, engine):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", str(int(engine == "lfs")))
    push(export, REPO, patience=QUICK)
    assert any(request.sent_token for request in hub.requests)
    assert len(hub.requests) > 8
    for secret in (TOKEN.encode(), CANARY.encode()):
        assert not any(secret in request.body or secret in request.path.encode() for request in hub.requests)
        assert not any(secret in data for data in hub.blobs.values())


# ------------------------------------------------------------------------------------- faults at each request of a push


@pytest.mark.parametrize("request_name", REQUESTS)
def test_refused_anywhere_then_repeated_over_a_lost_answer(hub, export, request_name):
    hub.inject(REQUESTS[request_name], status=403)
    message = refusal(export, REPO)
    assert f"this token may not write to {REPO} (status 403, while " in message
    assert "What it said: Injected failure" in message
    assert REPO not in hub.repos or hub.files(REPO) in ({}, content(export))  # nothing, or all of it
    hub.inject(REQUESTS[request_name], mode="lose")
    push(export, REPO, patience=QUICK)
    assert hub.files(REPO) == content(export)
    assert len(commits(hub)) == 1


@pytest.mark.parametrize("shift", range(3))
def test_what_passes_is_waited_for(hub, export, shift):
    faults = [{"status": 500}, {"mode": "cut"}, {"mode": "html", "status": 502}]
    for number, name in enumerate(["info", "create", "card", "commit", "check"]):  # the client does not retry these
        hub.inject(REQUESTS[name], **faults[(number + shift) % 3])
    push(export, REPO, patience=QUICK)
    assert not any(fault.times for fault in hub.faults)
    assert hub.files(REPO) == content(export)
    assert len(commits(hub)) == 1


def test_the_commit_is_tried_again_after_what_may_pass(hub, export):
    for status in (409, 412, 429, 503):
        hub.inject(COMMIT, status=status)
    push(export, REPO, patience=QUICK)
    assert len(paths(hub, COMMIT)) == 5
    assert len(commits(hub)) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"status": 409}, "the Hub is busy with another change of this repository (status 409"),
        ({"status": 412}, "somebody else keeps committing to this repository (status 412"),
        ({"status": 429}, "the Hub's rate limit is reached (status 429"),
        ({"status": 500}, "the Hub failed (status 500"),
        ({"mode": "html", "status": 502}, "the Hub failed (status 502"),
        ({"mode": "cut"}, "the connection to the Hub broke"),
        ({"mode": "hang"}, "did not answer in time"),
        ({"status": 413}, "a file is too large for the Hub (status 413"),
        ({"status": 401}, "the Hub refuses the token"),
        ({"status": 404}, "the repository does not exist for this token"),
    ],
    ids=str,
)
def test_what_does_not_pass_ends_with_a_reason(hub, export, fault, says):
    hub.inject(COMMIT, times=-1, **fault)
    started = time.monotonic()
    seconds = 0.5 if fault.get("mode") == "hang" else 10.0
    patience = Patience(request_seconds=seconds, retry_seconds=0.3, wait_seconds=0.05, total_seconds=60.0)
    assert says in refusal(export, REPO, patience=patience)
    assert time.monotonic() - started < 55.0
    assert commits(hub) == []


def test_a_stated_wait_is_kept_when_it_is_short_and_told_when_it_is_long(hub, export):
    hub.inject(COMMIT, status=429, retry_after=1)
    started = time.monotonic()
    push(export, REPO, patience=QUICK)
    assert time.monotonic() - started > 1.0
    (export / "config.json").write_text('{"new": 1}')
    hub.inject(COMMIT, status=429, retry_after=700)
    assert "It asks to wait 700 s" in refusal(export, REPO)


def test_a_hub_that_hangs_on_every_request_is_left_in_time(hub, export):
    hub.inject(".*", mode="hang", times=-1)
    patience = Patience(request_seconds=100.0, total_seconds=12.0)  # the start of the courier included
    started = time.monotonic()
    message = refusal(export, REPO, patience=patience)
    assert time.monotonic() - started < 40.0
    assert "it was not done after 12 s and was stopped (while looking up the repository)" in message


def test_a_listing_that_hangs_is_asked_for_again(hub, export):
    hub.inject(TREE, mode="hang")
    push(export, REPO, patience=Patience(request_seconds=1.0, wait_seconds=0.05, total_seconds=60.0))
    assert hub.files(REPO) == content(export)


def test_creating_while_the_hub_is_busy_does_not_hammer_it(hub, export):
    busy = "Cannot create repo: another conflicting operation is in progress"
    hub.inject(CREATE, status=409, times=-1, message=busy, body={"url": f"{hub.url}/{REPO}"})
    patience = Patience(request_seconds=10.0, wait_seconds=0.05, total_seconds=60.0)
    assert f"What it said: {busy}" in refusal(export, REPO, patience=patience)
    assert len(paths(hub, CREATE)) == 6


@pytest.mark.parametrize("match", ["xet-write-token", "/v1/xorbs", "/v1/shards"])
def test_without_xet_storage_the_files_go_by_lfs(hub, export, monkeypatch, match):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    hub.inject(match, status=403, times=-1)
    push(export, REPO, patience=QUICK)
    assert paths(hub, "PUT /lfs/")
    assert hub.files(REPO) == content(export)
    assert len(commits(hub)) == 1


def test_what_somebody_else_commits_meanwhile_is_seen(hub, export, monkeypatch):
    hub.create(REPO, private=True)
    next_fault, others = hub.next_fault, [{"vocab.txt": b"theirs", "notes.txt": b"theirs"}]

    def commit_first(request):
        if "/preupload/" in request and others:
            repo, main = hub.repos[REPO], hub.repos[REPO].resolve("main")
            entries = {path: hub.entry(data) for path, data in others.pop().items()}
            repo.refs["refs/heads/main"] = repo.add(main.files | entries, main.oid, "theirs").oid
        return next_fault(request)

    monkeypatch.setattr(hub, "next_fault", commit_first)
    push(export, REPO, patience=QUICK)
    assert hub.files(REPO) == content(export) | {"notes.txt": b"theirs"}
    assert commits(hub) == ["Publish the fine-tuned model", "theirs"]


def test_a_push_that_is_killed_is_completed_by_the_next_one(hub, export):
    hub.inject(COMMIT, mode="hang")
    code = f"from pathlib import Path; from finetune.publish import push; push(Path({str(export)!r}), {REPO!r})"
    environ = os.environ | {"PYTHONPATH": str(Path(finetune.__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environ)
    deadline = time.monotonic() + 60
    while not paths(hub, COMMIT) and time.monotonic() < deadline:
        time.sleep(0.05)
    (courier,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    courier.wait(timeout=30)  # it does not go on alone, against the next one
    push(export, REPO, patience=QUICK)
    assert hub.files(REPO) == content(export)
    assert len(commits(hub)) == 1


# ------------------------------------------------------------------------------------------------------- what we refuse


def test_a_wrong_token(hub, export, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Zz" * 17)
    message = refusal(export, REPO)
    assert "the Hub refuses the token: it is wrong or has expired (status 401" in message
    assert "hf_Zz" not in message


def test_no_token_at_all(hub, export, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no Hugging Face token" in refusal(export, REPO)
    assert hub.requests == []


def test_a_token_that_may_only_read(hub, export, monkeypatch):
    hub.add_token("hf_" + "Rr" * 17, role="read")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Rr" * 17)
    assert "(status 403, while creating the repository)\n  What it said: This token only has read" in refusal(
        export, REPO
    )


def test_no_hub_there(export, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert "the Hub cannot be reached at http://127.0.0.1:9" in refusal(export, REPO)
    assert time.monotonic() - started < 60.0


def test_offline_mode(hub, export, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" in refusal(export, REPO)
    assert hub.requests == []


@pytest.mark.parametrize("asked", [True, False])
def test_another_visibility_than_asked_for_gets_nothing(hub, export, asked):
    hub.create(REPO, private=not asked)
    words = ("public", "private") if asked else ("private", "public")
    assert f"{REPO} exists and is {words[0]}, but {words[1]} was asked for" in refusal(export, REPO, asked)
    assert paths(hub, "POST|PUT") == []


def test_a_repository_that_did_not_become_private(hub, export, monkeypatch):
    made = hub.create
    monkeypatch.setattr(hub, "create", lambda repo, private: made(repo, private=False))
    assert "exists and is public, but private was asked for" in refusal(export, REPO)
    assert hub.files(REPO) == {}


def test_a_card_that_the_hub_refuses(hub, export):
    (export / "README.md").write_text("---\nlicense: gpl-2.0-or-later\n---\n")
    message = refusal(export, REPO)
    assert "the Hub refuses the card" in message
    assert '"license" must be one of' in message
    assert commits(hub) == []


def test_files_that_the_repository_ignores_are_missed(hub, export):
    hub.create(REPO, private=True, files={".gitignore": b"config.json\n"})
    message = refusal(export, REPO)
    assert "files are not in the commit as they are here" in message
    assert "config.json" in message


def test_what_may_not_leave_is_refused_before_any_request(hub, export):
    (export / "train.csv").write_text("private row")
    with pytest.raises(PublishError, match=r"train\.csv: not a file that belongs to a model"):
        push(export, REPO, patience=QUICK)
    assert hub.requests == []


def test_a_token_in_the_hubs_own_words_is_not_repeated(hub, export):
    hub.inject(COMMIT, status=403, message=f"token {TOKEN} is not allowed")
    assert "token *** is not allowed" in refusal(export, REPO)


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_an_incomplete_export(hub, export, name):
    (export / name).unlink()
    with pytest.raises(PublishError, match="is missing"):
        push(export, REPO)
    assert hub.requests == []


@pytest.mark.parametrize("repo_id", ["model", "user/", "user/a b", "user/../x", "a/b/c", "user/x."])
def test_an_id_that_is_none(export, repo_id):
    with pytest.raises(RecipeError, match="expected NAMESPACE/NAME"):
        push(export, repo_id)
    assert "expected NAMESPACE/NAME" in preflight(repo_id)[0]


# ------------------------------------------------------------------------------------------------------------ preflight


def test_nothing_to_say_before_a_push_that_will_work(hub):
    assert preflight(REPO) == preflight("team/model") == []
    hub.create(REPO, private=True)
    assert preflight(REPO) == []
    assert paths(hub, "POST|PUT") == []


def test_preflight_of_what_will_not_work(hub, monkeypatch):
    hub.create(REPO, private=False)
    assert "exists and is public, but private was asked for" in preflight(REPO)[0]
    assert preflight(REPO, private=False) == []
    (problem,) = preflight("stranger/model")
    assert problem == (
        "hub.repo_id: stranger is neither you nor an organization of yours; the token may create in: user, team"
    )
    hub.create("stranger/theirs", private=False)
    assert "may not write to stranger/theirs" in preflight("stranger/theirs", private=False)[0]
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Zz" * 17)
    (problem,) = preflight(REPO)
    assert problem.startswith(f"hub.repo_id: {REPO} cannot be checked: the Hub refuses the token")
    assert "hf auth login" in problem
    assert "\n" not in problem
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no Hugging Face token" in preflight(REPO)[0]


@pytest.mark.parametrize(
    ("role", "scopes", "says"),
    [
        ("read", (), "may only read"),
        ("fineGrained", (), "is not allowed to write to repositories of user"),
        ("fineGrained", (("user", "repo.content.read"), ("team", "repo.write")), "is not allowed to write"),
        ("fineGrained", (("user", "repo.write"),), None),
    ],
)
def test_preflight_of_a_tokens_rights(hub, monkeypatch, role, scopes, says):
    hub.add_token("hf_" + "Rr" * 17, role=role, scopes=scopes)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Rr" * 17)
    problems = preflight(REPO)
    assert (problems == []) if says is None else (says in problems[0])


def test_preflight_of_a_hub_that_is_down_or_hangs_is_short(hub, monkeypatch):
    hub.inject(".*", mode="hang", times=-1)
    started = time.monotonic()
    assert "it was not done after 3 s and was stopped" in preflight(REPO, limit_seconds=3.0)[0]
    assert time.monotonic() - started < 40.0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached at http://127.0.0.1:9" in preflight(REPO, limit_seconds=20.0)[0]


# ------------------------------------------------------------------------------------------------------- the whole way


def test_the_pushed_commit_answers_as_the_export_does(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    export = tiny_export.build(tmp_path / "export")
    answers = tiny_export.answers(export)
    cases = [Case(t, tiny_export.KWARGS, a) for t, a in zip(tiny_export.TEXTS, answers, strict=True)]
    published = push(export, REPO, patience=QUICK)
    hub.requests.clear()
    verified = verify_pushed(published, cases, "text-classification")
    assert verified == published.model_copy(update={"verified": True})
    downloads = paths(hub, "GET .*/resolve/")
    assert downloads
    assert all(f"/resolve/{published.commit}/" in path for path in downloads)
    assert not any(TOKEN.encode() in request.body for request in hub.requests)


def test_a_pushed_commit_that_answers_otherwise_is_said_to_be_there(monkeypatch):
    def differ(*_, **__):
        raise PublishError(f"user/model at commit abc: differs; {TOKEN}")

    monkeypatch.setattr(publish, "load_remote", differ)
    published = publish.Published(repo_id=REPO, commit="abc", private=True)
    with pytest.raises(PublishError) as caught:
        verify_pushed(published, [], "text-classification", repeat="finetune push runs/demo")
    assert "The commit is on the Hub, but it was not verified. To try again: finetune push runs/demo" in str(
        caught.value
    )
    assert TOKEN not in str(caught.value)
