"""The conversation with the Hub: a program for a process of its own, run by path, which `publish` can stop any time.

The POSTs of huggingface_hub have no time limit, its Xet engine retries for minutes in threads of its own, and creating
a repository may loop without end: so the process that trained never calls it. On stdin one JSON document, a job; on
stdout one JSON line for each stage reached, {"stage": ...}, and at the end {"answer": ...} or {"failure": ...}. The
token comes from the environment or the login store of huggingface_hub, and goes nowhere but into its requests.

Publishing is one attempt that can be made any number of times: it looks at the repository first, sends what differs in
one commit on top of what it saw (`parentCommit`), and looks again. So a lost answer, a second run and somebody else's
commit in between all end in the same tree, without a second commit. Source: huggingface_hub 2.4, HfApi.create_commit;
what it retries by itself: utils._http.http_backoff.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

__all__: list[str] = []

_AGAIN = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})  # statuses that may be gone the next time
_PASSING = frozenset({"unreachable", "timeout", "cut", "xet", "answer"})  # other failures of which that holds
_TRIES = 6
_LONGEST_WAIT_SECONDS = 8.0
_PULLS = 20  # how many of the newest pull requests are looked at
_BUSY = "another conflicting operation is in progress"

T = TypeVar("T")
Job = dict[str, Any]


class _Refusal(Exception):  # noqa: N818
    """We will not go on; asking again would not help."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Stages:
    """Says on stdout how far the work has come."""

    def __init__(self) -> None:
        self.name = "starting"
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # whatever libraries print

    def reach(self, name: str) -> None:
        self.name = name
        self.say({"stage": name})

    def say(self, row: dict[str, Any]) -> None:
        self._out.write(json.dumps(row) + "\n")
        self._out.flush()


def main() -> None:
    """Do the job on stdin; exit 0 with an answer, 1 with a failure."""
    stages, job = _Stages(), json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(job["parent"],), daemon=True).start()
    huggingface_hub.set_client_factory(lambda: _client(job["request_seconds"]))
    try:
        token = _token()
        work = {"preflight": _preflight, "push": _push}[job["do"]]
        answer = _insist(lambda: work(huggingface_hub.HfApi(token=token), job, stages), job)
        stages.say({"answer": answer})
    except Exception as error:  # the boundary of the process: every failure becomes an answer
        stages.say({"failure": _failure(error) | {"stage": stages.name}})
        os._exit(1)
    os._exit(0)  # threads of the client must not keep the process


def _end_with(parent: int) -> None:
    """Stop when the process that asked is gone: nobody would hear the answer, and its successor pushes again."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _client(request_seconds: float) -> httpx2.Client:
    """As huggingface_hub makes it, with a time limit for each wait on the network, and without its endless loop."""
    timeout = httpx2.Timeout(request_seconds, connect=min(10.0, request_seconds))

    def limit(request: httpx2.Request) -> None:  # here, because some calls of huggingface_hub say "no limit" themselves
        request.extensions = {**request.extensions, "timeout": timeout.as_dict()}

    def check(response: httpx2.Response) -> None:
        if response.status_code == 409 and response.request.url.path.endswith("/api/repos/create"):
            response.read()
            if _BUSY in response.text or '"url"' not in response.text:  # asked again without end; a KeyError
                huggingface_hub.hf_raise_for_status(response)

    return httpx2.Client(follow_redirects=True, timeout=timeout, event_hooks={"request": [limit], "response": [check]})


def _token() -> str:
    if huggingface_hub.is_offline_mode():
        raise _Refusal("offline", "offline mode")
    token = huggingface_hub.get_token()
    if token is None:
        raise _Refusal("no_token", "no token")
    return token


# ------------------------------------------------------------------------------------------------- failing and retrying


def _insist(attempt: Callable[[], T], job: Job) -> T:
    """What `attempt` returns, made again while failures may pass and the time for retries lasts."""
    wait, first = float(job["wait_seconds"]), None
    for tries in range(1, _TRIES + 1):
        try:
            return attempt()
        except Exception as error:
            failure = _failure(error)
            first = time.monotonic() if first is None else first
            if failure["kind"] == "xet" and not huggingface_hub.constants.HF_HUB_DISABLE_XET:
                print("The Xet upload failed; going on with the LFS upload.", file=sys.stderr)  # noqa: T201
                huggingface_hub.constants.HF_HUB_DISABLE_XET = True
                continue
            pause = max(wait, failure.get("retry_after") or 0.0)
            late = time.monotonic() + pause - first > job["retry_seconds"]
            if late or tries == _TRIES or not _may_pass(failure):
                raise
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
    raise AssertionError("unreachable: the last try returns or raises")


def _may_pass(failure: dict[str, Any]) -> bool:
    return failure["kind"] in _PASSING or failure.get("status") in _AGAIN


def _failure(error: BaseException) -> dict[str, Any]:
    """A failure as JSON: kind, message, and of an HTTP answer its status and Retry-After."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading" hides the cause
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        after = error.response.headers.get("Retry-After", "")
        server = error.server_message or str(error).strip().split("\n")[0]
        status = {"status": error.response.status_code, "retry_after": float(after) if after.isdigit() else None}
        return {"kind": "status", "message": server, **status}
    if isinstance(error, _Refusal):
        return {"kind": error.kind, "message": str(error)}
    return {"kind": _kind(error), "message": f"{type(error).__name__}: {error}"}


def _kind(error: BaseException) -> str:
    kinds: list[tuple[type[BaseException], str]] = [
        (OfflineModeIsEnabled, "offline"),
        (httpx2.ConnectError, "unreachable"),
        (httpx2.ConnectTimeout, "unreachable"),
        (httpx2.TimeoutException, "timeout"),
        (httpx2.TransportError, "cut"),
        (json.JSONDecodeError, "answer"),
        (ConnectionError, "xet"),  # all that hf-xet raises, whatever happened
        (OSError, "disk"),
    ]
    if isinstance(error, ValueError) and str(error).startswith("Invalid metadata in README.md"):
        return "card"
    return next((kind for type_, kind in kinds if isinstance(error, type_)), "unexpected")


# ------------------------------------------------------------------------------------------------------------ the jobs


def _preflight(api: huggingface_hub.HfApi, job: Job, stages: _Stages) -> dict[str, Any]:
    """Who the token belongs to, what it may do, and whether the repository is there."""
    stages.reach("asking whose token this is")
    who = api.whoami()
    token = who.get("auth", {}).get("accessToken", {})
    scopes = token.get("fineGrained", {}).get("scoped", [])
    writable = [row["entity"].get("name") for row in scopes if "repo.write" in row.get("permissions", [])]
    facts: dict[str, Any] = {"user": who["name"], "role": token.get("role"), "writable": writable}
    facts["organizations"] = {org["name"]: org.get("roleInOrg") for org in who.get("orgs", [])}
    stages.reach("looking up the repository")
    info = _look_up(api, job["repo_id"])
    if info is None:
        return facts | {"exists": False}
    stages.reach("asking for the right to write")
    try:
        api.auth_check(job["repo_id"], write=True)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404):
            raise
        return facts | {"exists": True, "private": bool(info.private), "may_write": False}
    return facts | {"exists": True, "private": bool(info.private), "may_write": True}


def _look_up(api: huggingface_hub.HfApi, repo_id: str) -> Any:
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def _push(api: huggingface_hub.HfApi, job: Job, stages: _Stages) -> dict[str, Any]:
    """One attempt to make the repository's tree equal to the export."""
    repo_id, export = job["repo_id"], Path(job["export"])
    stages.reach("looking up the repository")
    info = _look_up(api, repo_id)
    if info is None:
        stages.reach("creating the repository")
        api.create_repo(repo_id, private=job["private"], exist_ok=True)
        stages.reach("reading back its visibility")
        info = api.model_info(repo_id)
    if bool(info.private) != job["private"]:
        raise _Refusal("visibility", "private" if info.private else "public")
    stages.reach("listing its files")
    add, remove = _changes(job, export, _tree(api, repo_id, info.sha))
    answer = {"commit": info.sha, "url": f"{api.endpoint}/{repo_id}", "pull_request": None, "created": False}
    if add or remove:
        known = _same_pull(api, job, export, stages) if job["create_pr"] else None
        answer |= known or _commit(api, job, info.sha, add, remove, stages)
    return answer | {"private": _check(api, job, export, answer["commit"], stages)}


def _tree(api: huggingface_hub.HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    rows = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {row.path: row for row in rows if isinstance(row, RepoFile)}


def _changes(job: Job, export: Path, remote: dict[str, RepoFile]) -> tuple[list[str], list[str]]:
    """Names to send, and names to delete: those of files that an export could have and this one has not."""
    add = [name for name in job["files"] if name not in remote or not _is_same(export / name, remote[name])]
    gone = remote.keys() - set(job["files"])
    return add, sorted(name for name in gone if re.fullmatch(job["names"], name))


def _is_same(path: Path, row: RepoFile) -> bool:
    if path.stat().st_size != row.size:
        return False
    if row.lfs is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == row.lfs.sha256
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == row.blob_id


def _same_pull(api: huggingface_hub.HfApi, job: Job, export: Path, stages: _Stages) -> dict[str, Any] | None:
    """An open pull request that proposes just this export: an earlier push made it."""
    stages.reach("listing the pull requests")
    repo_id = job["repo_id"]
    for number, pull in enumerate(api.get_repo_discussions(repo_id, discussion_type="pull_request")):
        if number == _PULLS:
            break
        if pull.is_pull_request and pull.status in ("open", "draft") and pull.git_reference is not None:
            sha = str(api.model_info(repo_id, revision=pull.git_reference).sha)
            if _changes(job, export, _tree(api, repo_id, sha)) == ([], []):
                return {"commit": sha, "pull_request": pull.url}
    return None


def _commit(
    api: huggingface_hub.HfApi, job: Job, parent: str, add: list[str], remove: list[str], stages: _Stages
) -> dict[str, Any]:
    stages.reach("sending the files")
    additions = [huggingface_hub.CommitOperationAdd(name, Path(job["export"], name)) for name in add]
    deletions = [huggingface_hub.CommitOperationDelete(name, is_folder=False) for name in remove]
    made = api.create_commit(
        job["repo_id"],
        [*additions, *deletions],
        commit_message=job["message"],
        parent_commit=parent,
        create_pr=job["create_pr"],
    )
    return {"commit": made.oid, "pull_request": made.pr_url, "created": True}


def _check(api: huggingface_hub.HfApi, job: Job, export: Path, commit: str, stages: _Stages) -> bool:
    """Look at what is there now. Returns whether it is private; refuses when it is not this export."""
    stages.reach("looking at the commit")
    info = api.model_info(job["repo_id"], revision=commit)
    if bool(info.private) != job["private"]:
        raise _Refusal("visibility", "private" if info.private else "public")
    add, remove = _changes(job, export, _tree(api, job["repo_id"], commit))
    if add or remove:
        raise _Refusal("tree", ", ".join([*add, *remove]))
    return bool(info.private)


if __name__ == "__main__":
    main()
