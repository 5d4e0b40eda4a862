"""From a finished export to a repository on the Hub that gives the same predictions."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import fresh
from finetune.errors import PublishError, RecipeError
from finetune.publish.allowlist import allowed, pattern, redact
from finetune.publish.verification import VerifyResult, load_remote, read_cases, verify
from finetune.record import Published
from finetune.tasks.base import Case

__all__ = [
    "Case",
    "Patience",
    "VerifyResult",
    "allowed",
    "check_repo_id",
    "preflight",
    "push",
    "read_cases",
    "verify",
    "verify_pushed",
]

_COURIER = Path(__file__).with_name("courier.py")
_REPO_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}(?<![.-])", re.ASCII)
_SLOWEST_BYTES_PER_SECOND = 200_000
_LOGIN = "set HF_TOKEN, or run `hf auth login`, with a token that may write (https://huggingface.co/settings/tokens)"
_CHECK_TOKEN = f"check the token: {_LOGIN}"

_KINDS = {  # of failures without an HTTP status: what happened, what to do
    "no_token": ("there is no Hugging Face token", _LOGIN),
    "offline": ("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set", "unset it"),
    "unreachable": ("the Hub cannot be reached at {endpoint}", "check the network, proxy settings and HF_ENDPOINT"),
    "timeout": ("the Hub at {endpoint} did not answer in time", "try again later"),
    "cut": ("the connection to the Hub broke", "try again"),
    "answer": (
        "what answered at {endpoint} is not the Hub",
        "check HF_ENDPOINT and proxy settings, or try again later",
    ),
    "card": ("the Hub refuses the card", "correct README.md in the export, or the card block of the recipe"),
    "xet": ("the Xet storage of the Hub failed", "try again with HF_HUB_DISABLE_XET=1"),
    "disk": ("a file could not be read", "check the export folder"),
    "tree": ("files are not in the commit as they are here", "check the repository's .gitignore, then try again"),
    "stopped": ("it was not done after {limit:.0f} s and was stopped", "check the network, then try again"),
    "died": ("the process that talks to the Hub died", "try again"),
    "unexpected": (
        "huggingface_hub failed in a way that is not known here",
        "try again; if it stays, report this text",
    ),
}
_STATUSES = {  # of HTTP answers
    400: ("the Hub did not accept the request", "read its answer above; most often a name or the card is at fault"),
    401: ("the Hub refuses the token: it is wrong or has expired", _CHECK_TOKEN),
    402: ("the account's storage or plan does not allow this", "free storage, or ask the owner of the namespace"),
    403: ("this token may not write to {repo_id}", _CHECK_TOKEN),
    404: ("the repository does not exist for this token", f"check the repository's name; {_CHECK_TOKEN}"),
    409: ("the Hub is busy with another change of this repository", "try again later"),
    412: ("somebody else keeps committing to this repository", "try again"),
    413: ("a file is too large for the Hub", "save the weights in smaller shards"),
    429: ("the Hub's rate limit is reached", "try again later"),
}
_OTHER = ("the Hub failed", "try again later; https://status.huggingface.co")


@dataclass(frozen=True)
class Patience:
    """How long to wait for the Hub, in seconds."""

    request_seconds: float = 60.0  # for each wait on the network
    retry_seconds: float = 90.0  # for retries after the first failure; Retry-After is honoured inside it
    wait_seconds: float = 1.0  # before the first retry; doubles up to 8
    total_seconds: float | None = None  # None: 10 minutes, and 1 s for each 200 kB


def check_repo_id(repo_id: str) -> None:
    """Raises RecipeError for an id that no repository can have."""
    if not _REPO_ID.fullmatch(repo_id):
        raise RecipeError(
            f"hub.repo_id: expected NAMESPACE/NAME, found {repo_id!r}; NAMESPACE is your user name or organization"
        )


def preflight(repo_id: str, private: bool = True, *, limit_seconds: float = 30.0) -> list[str]:
    """What would keep a push to `repo_id` from succeeding, each with what to do; empty when nothing is known to.

    Looks at the token, its rights, the namespace and, if the repository exists, its visibility. Sends nothing, takes
    `limit_seconds` at most.
    """
    try:
        check_repo_id(repo_id)
    except RecipeError as error:
        return [str(error)]
    job = {"do": "preflight", "repo_id": repo_id}
    patience = Patience(request_seconds=8.0, retry_seconds=3.0, wait_seconds=0.5)
    try:
        facts = _ask(job, patience, limit_seconds, show=False)
    except _HubFailure as failure:
        return [f"hub.repo_id: {repo_id} cannot be checked: {failure.explain(repo_id)}".replace("\n  ", "; ")]
    return [f"hub.repo_id: {problem}" for problem in _problems(repo_id, private, facts)]


def push(
    export: Path,
    repo_id: str,
    private: bool = True,
    *,
    create_pr: bool = False,
    modules: Collection[str] = (),
    message: str = "Publish the fine-tuned model",
    repeat: str | None = None,
    patience: Patience | None = None,
    progress: bool = False,
) -> Published:
    """Make the repository's files equal to those of `export`, in one commit (with `create_pr`: as a pull request).

    The repository is created when it is missing. Its visibility is read back, before anything is sent and after; other
    than `private` asks, it is refused. Files there that no export could have are left alone. When nothing differs, no
    commit is made, and the present one is returned. `verified` of the result is False: see verify_pushed.
    modules: names of the inference modules in the export. repeat: the command that does it again, for messages.
    progress: let bars of huggingface_hub through to stderr. Raises PublishError, or RecipeError for an id that none can
    have; the export is never changed.
    """
    repeat = repeat or f"finetune push {export.parent}"
    check_repo_id(repo_id)
    files = allowed(export, modules)
    names = [path.relative_to(export).as_posix() for path in files]
    if "README.md" not in names or "config.json" not in names:
        raise PublishError(f"{export}: README.md or config.json is missing; train again before publishing")
    patience = patience or Patience()
    limit = patience.total_seconds or 600 + sum(path.stat().st_size for path in files) / _SLOWEST_BYTES_PER_SECOND
    job = {"do": "push", "repo_id": repo_id, "private": private, "create_pr": create_pr, "message": message}
    job |= {"export": str(export.resolve()), "files": names, "names": pattern(modules)}
    try:
        answer = _ask(job, patience, limit, show=progress)
    except _HubFailure as failure:
        raise PublishError(
            f"{export} was not published to {repo_id}: {failure.explain(repo_id, private)}\n"
            f"  Nothing is lost: the export is complete. To publish it: {repeat}"
        ) from None
    return Published(
        repo_id=repo_id,
        commit=answer["commit"],
        url=answer["url"],
        private=answer["private"],
        pull_request=answer["pull_request"],
    )


def verify_pushed(
    published: Published,
    cases: Sequence[Case],
    task: str,
    *,
    modules: Collection[str] = (),
    repeat: str | None = None,
    limit_seconds: float = 900.0,
) -> Published:
    """Load the pushed commit as a stranger would, with empty caches, and compare it with the cases.

    A token is used only when the repository is private. Returns `published` with `verified` True. Raises PublishError.
    """
    from huggingface_hub import get_token

    token = get_token() if published.private else None
    where, commit = published.repo_id, published.commit
    try:
        load_remote(where, commit, cases, task, token=token, modules=modules, limit_seconds=limit_seconds)
    except PublishError as error:
        again = f" To try again: {repeat}" if repeat else ""
        message = f"{redact(str(error))}\n  The commit is on the Hub, but it was not verified.{again}"
        raise PublishError(message) from None
    return published.model_copy(update={"verified": True})


class _HubFailure(Exception):  # noqa: N818
    """The conversation with the Hub failed."""

    def __init__(self, failure: Mapping[str, Any], limit_seconds: float) -> None:
        super().__init__(str(failure))
        self.failure, self.limit_seconds = failure, limit_seconds

    def explain(self, repo_id: str, private: bool = True) -> str:
        """What happened, at which stage, what the Hub said, and what to do."""
        kind, status, text = self.failure["kind"], self.failure.get("status"), str(self.failure.get("message", ""))
        if kind == "visibility":
            return _visibility(repo_id, text == "private", private)
        what, todo = _STATUSES.get(status, _OTHER) if status else _KINDS[kind]
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        what = what.format(endpoint=endpoint, repo_id=repo_id, limit=self.limit_seconds)
        code = f"status {status}, " if status else ""
        said = f"\n  What it said: {redact(text)}" if text and kind not in ("no_token", "offline") else ""
        wait = self.failure.get("retry_after")
        pause = f"\n  It asks to wait {wait:.0f} s" if wait else ""
        return f"{what} ({code}while {self.failure['stage']}){said}{pause}\n  What to do: {todo}"


def _ask(job: Mapping[str, Any], patience: Patience, limit_seconds: float, show: bool) -> dict[str, Any]:
    """The answer of the program courier.py. Raises _HubFailure."""
    waits = {"request_seconds": patience.request_seconds, "retry_seconds": patience.retry_seconds}
    document = {**job, **waits, "wait_seconds": patience.wait_seconds, "parent": os.getpid()}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": None if show else "1"}
    quiet |= {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": os.environ.get("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")}
    environ = fresh.environment(quiet)
    reply = fresh.ask(_COURIER, document, environ=environ, limit_seconds=limit_seconds, show=show)
    last = reply.answer or {"stage": "starting"}
    if "answer" in last:
        return dict(last["answer"])
    if "failure" in last:
        raise _HubFailure(last["failure"], limit_seconds)
    kind = "stopped" if reply.code is None else "died"
    text = "" if reply.code is None else reply.errors.rsplit("\n", 1)[-1]
    raise _HubFailure({"kind": kind, "message": text, "stage": last["stage"]}, limit_seconds)


def _problems(repo_id: str, private: bool, facts: Mapping[str, Any]) -> list[str]:
    """What the facts of courier.py's preflight mean for a push."""
    namespace = repo_id.split("/")[0]
    if facts["role"] == "read":
        return [f"the token of {facts['user']} may only read; {_LOGIN}"]
    if facts["exists"]:
        problems = [] if facts["may_write"] else [f"the token of {facts['user']} may not write to {repo_id}; {_LOGIN}"]
        wrong = bool(facts["private"]) != private
        return problems + ([_visibility(repo_id, facts["private"], private)] if wrong else [])
    organizations = facts["organizations"]
    if namespace != facts["user"] and namespace not in organizations:
        names = ", ".join([facts["user"], *sorted(organizations)])
        return [f"{namespace} is neither you nor an organization of yours; the token may create in: {names}"]
    if organizations.get(namespace) == "read":
        return [f"you may only read in the organization {namespace}; ask its owner for the right to write"]
    if facts["role"] == "fineGrained" and not {namespace, repo_id} & set(facts["writable"]):
        return [f"the token of {facts['user']} is not allowed to write to repositories of {namespace}; {_LOGIN}"]
    return []


def _visibility(repo_id: str, is_private: bool, private: bool) -> str:
    words = {True: "private", False: "public"}
    return (
        f"{repo_id} exists and is {words[is_private]}, but {words[private]} was asked for; change its visibility in its"
        f" settings on the Hub, take another name, or set hub.private: {str(is_private).lower()}"
        f" (finetune push --{words[is_private]})"
    )
