"""A Hugging Face Hub on 127.0.0.1, in memory, with faults on request.

It speaks the part of the Hub's HTTP protocol that unmodified huggingface_hub and transformers need to create a model
repository, push to it (inline, LFS and Xet), propose pull requests and load files back. Models only, no git itself,
no downloads by Xet, no LFS in parts.

    with HubServer(token="hf_secret") as hub:
        ...  # clients run with HF_ENDPOINT=hub.url and HF_TOKEN=hf_secret
        hub.inject("POST .*/commit/", status=503, times=2)
        hub.requests  # what came in, bodies included

Access: a token's user owns the namespace of the same name and those given as `orgs`. A wrong token is refused
everywhere (401). A private repository looks missing to everybody else: 401 without a token, 404 with one, both with
X-Error-Code.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import socket
import struct
import sys
import threading
import time
import traceback
import uuid
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlencode

import ruamel.yaml

DATE = "2026-01-01T00:00:00.000Z"
LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".h5", ".msgpack", ".pt", ".parquet")
LFS_THRESHOLD = 10_000_000  # bytes; larger files cannot be sent inline


class HubError(Exception):
    """An answer other than success; `code` is the X-Error-Code by which the client picks its exception."""

    def __init__(self, status, message, code=None, headers=None, **body):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = headers or {}, body


class CutError(Exception):
    """The connection is to be reset without an answer."""


@dataclass
class Fault:
    """What goes wrong with the next `times` requests (-1: all) whose "METHOD /path?query" matches.

    mode: fail (answers `status`, nothing happens), html (the same with a proxy's error page), cut (connection reset,
    nothing happens), lose (done, but the connection is reset instead of an answer), hang (never answers).
    """

    match: str
    mode: str = "fail"
    status: int = 503
    times: int = 1
    retry_after: int | None = None
    message: str = "Injected failure"
    body: dict = field(default_factory=dict)


@dataclass
class Request:
    """One request that came in."""

    method: str
    path: str  # with the query
    sent_token: bool
    body: bytes = b""
    status: int = 0


@dataclass(frozen=True)
class Account:
    name: str
    role: str  # read, write or fineGrained
    namespaces: tuple[str, ...]
    scopes: tuple[tuple[str, str], ...] = ()  # of a fineGrained token: entity name, permission


@dataclass(frozen=True)
class Entry:
    """One file of a commit."""

    oid: str  # of git
    sha256: str
    size: int
    lfs: bool

    def row(self, path):
        row = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.lfs:
            row["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return row


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    files: dict[str, Entry]


@dataclass
class Repo:
    id: str
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pulls: list[dict] = field(default_factory=list)

    def resolve(self, revision):
        oid = self.refs.get(revision, self.refs.get(f"refs/heads/{revision}", revision))
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def add(self, files, parent, title):
        commit = Commit(secrets.token_hex(20), parent, title, files)
        self.commits[commit.oid] = commit
        return commit


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


# ------------------------------------------------------------------------------------------------------- model cards

FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
LICENSES = """apache-2.0 mit openrail bigscience-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-4.0 cdla-permissive-2.0 epl-2.0 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc
    ms-pl mpl-2.0 odc-by odbl osl-3.0 ofl-1.1 ncsa unlicense zlib pddl llama2 llama3 gemma unknown other"""


def card_metadata(content):
    """The parsed front matter of a card, or None."""
    match = FRONT_MATTER.match(content)
    return ruamel.yaml.YAML(typ="safe", pure=True).load(match[1]) if match else None


def card_errors(content):
    """Why the Hub would refuse this README.md."""
    try:
        data = card_metadata(content) or {}
    except ruamel.yaml.error.YAMLError as error:
        return [f"Invalid YAML front matter: {error}"]
    if not isinstance(data, dict):
        return ['"metadata" must be of type object']

    def each(name):
        value = data.get(name)
        return value if isinstance(value, list) else [] if value is None else [value]

    errors = [f'"license" must be one of [{LICENSES}]' for value in each("license") if value not in LICENSES.split()]
    bad = [v for v in each("language") if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(v))]
    errors += [f'"language" with value "{value}" is not valid' for value in bad]
    for name in ("base_model", "datasets"):
        bad = [v for v in each(name) if not isinstance(v, str) or not HUB_ID.fullmatch(v)]
        errors += [f'"{name}" with value "{value}" is not valid. Use an id from the Hub.' for value in bad]
    errors += [f'"{name}" must be an array' for name in ("tags", "metrics") if not isinstance(data.get(name, []), list)]
    return errors + list(_model_index_errors(data.get("model-index", [])))


def _model_index_errors(index):
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        yield from _missing(f"model-index[{i}]", model, "name", "results")
        for j, result in enumerate(model.get("results") or []):
            at = f"model-index[{i}].results[{j}]"
            yield from _missing(at, result, "task", "dataset", "metrics")
            yield from _missing(f"{at}.task", result.get("task") or {}, "type")
            yield from _missing(f"{at}.dataset", result.get("dataset") or {}, "type", "name")
            for k, metric in enumerate(result.get("metrics") or []):
                yield from _missing(f"{at}.metrics[{k}]", metric, "type", "value")


def _missing(at, item, *names):
    return [f'"{at}.{name}" is required' for name in names if item.get(name) is None]


# ------------------------------------------------------------------------------------------------------- Xet objects


def _lz4_length(block, length, at):
    while length >= 15:
        length += block[at]
        at += 1
        if block[at - 1] != 255:
            break
    return length, at


def _lz4_block(block, out):
    at = 0
    while at < len(block):
        token = block[at]
        length, at = _lz4_length(block, token >> 4, at + 1)
        out += block[at : at + length]
        at += length
        if at >= len(block):
            return
        offset = block[at] | block[at + 1] << 8
        length, at = _lz4_length(block, token & 15, at + 2)
        length += 4
        window = bytes(out[len(out) - offset :][:length])
        out += (window * (length // offset + 1))[:length] if offset < length else window


def lz4_frame(data):
    """Decompress one LZ4 frame."""
    if data[:4] != b"\x04\x22\x4d\x18":
        raise ValueError("not an LZ4 frame")
    flags, out = data[4], bytearray()
    at = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    while size := int.from_bytes(data[at : at + 4], "little"):
        block = data[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
        at += 4 + len(block) + (4 if flags & 0x10 else 0)
        if size >> 31:
            out += block
        else:
            _lz4_block(block, out)
    return bytes(out)


def xorb_chunks(data):
    """(offset, packed size, compression, size) of every chunk of a serialized xorb."""
    chunks, at = [], 0
    while at + 8 <= len(data) and data[at] == 0:
        packed, size = int.from_bytes(data[at + 1 : at + 4], "little"), int.from_bytes(data[at + 5 : at + 8], "little")
        chunks.append((at + 8, packed, data[at + 4], size))
        at += 8 + packed
    return chunks


def xorb_chunk(data, offset, packed, compression, size):
    piece = data[offset : offset + packed]
    if compression:
        piece = lz4_frame(piece)
    if compression == 2:  # the bytes were grouped by their position modulo 4
        grouped, piece, at = piece, bytearray(len(piece)), 0
        for lane in range(4):
            count = (len(grouped) - lane + 3) // 4
            piece[lane::4] = grouped[at : at + count]
            at += count
    if len(piece) != size:
        raise ValueError("a chunk has the wrong size")
    return bytes(piece)


def _xet_hex(raw):
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def shard_files(data):
    """(sha256, [(xorb, first chunk, end chunk)]) of every file that an uploaded shard registers."""
    files, at = [], 48
    while (raw := data[at : at + 32]) != b"\xff" * 32:
        if len(raw) < 32:
            raise ValueError("the shard is cut short")
        flags, entries = struct.unpack_from("<II", data, at + 32)
        at, terms = at + 48, []
        for _ in range(entries):
            start, end = struct.unpack_from("<II", data, at + 40)
            terms.append((_xet_hex(data[at : at + 32]), start, end))
            at += 48
        at += 48 * entries if flags & 1 << 31 else 0
        if not flags & 1 << 30:
            raise ValueError("a file has no SHA-256")
        files.append((_xet_hex(data[at : at + 32]), terms))
        at += 48
    return files


# -------------------------------------------------------------------------------------------------------------- HTTP

ROUTES = []
REPO = r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)"
FILES = r"(?:/datasets)?/(?P<repo>[^/]+/[^/]+)"


def route(methods, pattern, auth="hub"):
    """Bind a method of Handler to requests."""

    def bind(function):
        ROUTES.append((methods.split(), re.compile(pattern), function.__name__, auth))
        return function

    return bind


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def answer(self):
        path, _, query = self.path.partition("?")
        self.route_path, self.user, self.fault = path, None, None
        self.query = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
        self.base = f"http://{self.headers.get('Host') or self.server.address}"
        self.request_row = Request(self.command, self.path, "Authorization" in self.headers)
        try:
            self.request_row.body = self.body = self.read_body()
            self.server.requests.append(self.request_row)
            try:
                self.spoil()
                self.dispatch()
            except HubError as error:
                headers = {"X-Error-Message": re.sub(r"[^\x20-\x7e]", " ", error.message), **error.headers}
                headers |= {"X-Error-Code": error.code} if error.code else {}
                self.reply(error.status, {"error": error.message, **error.body}, headers)
        except CutError:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            self.reply(500, {"error": f"Internal error: {error!r}"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def spoil(self):
        """Let the fault that waits for this request happen."""
        self.fault = fault = self.server.next_fault(f"{self.command} {self.path}")
        if fault is None or fault.mode == "lose":
            return
        if fault.mode == "cut":
            raise CutError
        if fault.mode == "hang":
            self.server.closing.wait()
            raise CutError
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        if fault.mode == "html":
            self.reply(fault.status, b"<html><h1>Bad gateway</h1></html>", {"Content-Type": "text/html", **headers})
            raise ConnectionError
        raise HubError(fault.status, fault.message, headers=headers, **fault.body)

    def dispatch(self):
        method = "GET" if self.command == "HEAD" else self.command
        found = ((pattern.fullmatch(self.route_path), *rest) for methods, pattern, *rest in ROUTES if method in methods)
        match, name, auth = next((row for row in found if row[0]), (None,) * 3)
        if match is None:
            raise HubError(404, "Not found: no such route")
        if auth == "hub":
            self.authenticate()
        elif auth == "signed":
            self.check_signature()
        elif auth == "xet":
            self.check_xet_token()
        groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
        getattr(self, name)(**groups)

    def reply(self, status, body=b"", headers=None):
        if self.fault is not None and self.fault.mode == "lose":
            raise CutError
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
        self.request_row.status = status
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self):
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def read_body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def json(self):
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "The body must be a JSON object") from None

    # who may do what

    def authenticate(self):
        given = self.headers.get("Authorization")
        if given:
            self.user = self.server.accounts.get(given.removeprefix("Bearer ").strip())
            if self.user is None:
                raise HubError(401, "Invalid credentials in Authorization header")

    def signed_in(self, write=False):
        if self.user is None:
            raise HubError(401, "Invalid username or password.", headers={"WWW-Authenticate": "Bearer"})
        if write and self.user.role == "read":
            raise HubError(403, "This token only has read access: a write token is needed")
        return self.user

    def owns(self, repo):
        return self.user is not None and repo.split("/")[0] in self.user.namespaces

    def repo(self, repo, write=False, contribute=False):
        """The repository, if the caller may see it, change it (`write`) or propose changes (`contribute`)."""
        found = self.server.repos.get(repo)
        if found is None or (found.private and not self.owns(repo)):
            if self.user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write or contribute:
            self.signed_in(write=True)
            if write and not self.owns(repo):
                raise HubError(403, f"You don't have the rights to write to {repo}")
        return found

    def sign(self, path):
        """A link that works without a token, as those to a storage bucket do."""
        text = f"{path}?{urlencode({'expires': int(time.time()) + 3600})}"
        return f"{self.base}{text}&signature={self.mac(text)}"

    def mac(self, text):
        return hmac.new(self.server.secret, text.encode(), "sha256").hexdigest()

    def check_signature(self):
        expected = self.mac(f"{self.route_path}?{urlencode({'expires': self.query.get('expires', '')})}")
        if not hmac.compare_digest(self.query.get("signature", ""), expected):
            raise HubError(403, "The signature of this link is wrong")

    def check_xet_token(self):
        scope, given = (self.headers.get("Authorization", "").removeprefix("Bearer ") + ".").split(".")[:2]
        if not hmac.compare_digest(given, self.mac(scope)):
            raise HubError(401, "Invalid Xet token")

    # accounts and repositories

    @route("GET", r"/api/whoami-v2")
    def whoami(self):
        user = self.signed_in()
        token = {"displayName": "test", "role": user.role, "createdAt": DATE}
        if user.role == "fineGrained":
            scoped = [{"entity": {"type": "user", "name": n}, "permissions": [p]} for n, p in user.scopes]
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        orgs = [{"type": "org", "name": name, "roleInOrg": "admin"} for name in user.namespaces[1:]]
        answer = {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs}
        self.reply(200, answer | {"auth": {"type": "access_token", "accessToken": token}})

    @route("GET POST", r"/api/agent-harnesses|/api/telemetry/.*|/v1/telemetry", auth="none")
    def courtesy(self):
        self.reply(200, {"standardEnvVars": [], "harnesses": {}})

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self):
        errors = [{"message": text} for text in card_errors(self.json().get("content", ""))]
        answer = {"errors": errors, "warnings": []}
        self.reply(400 if errors else 200, ({"error": "Invalid metadata"} if errors else {}) | answer)

    @route("POST", r"/api/repos/create")
    def create(self):
        asked, user = self.json(), self.signed_in(write=True)
        space = asked.get("organization") or user.name
        repo = f"{space}/{asked.get('name')}"
        if not HUB_ID.fullmatch(repo):
            raise HubError(400, f"Invalid repo name: {repo}")
        if space not in user.namespaces:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{space}"')
        with self.server.lock:
            if repo in self.server.repos:
                raise HubError(409, "You already created this model repo", url=f"{self.base}/{repo}")
            self.server.create(repo, private=asked.get("visibility") == "private")
        self.reply(200, {"url": f"{self.base}/{repo}", "name": repo, "id": "0"})

    @route("GET", REPO + r"(?:/revision/(?P<revision>[^/]+))?")
    def info(self, repo, revision="main"):
        found = self.repo(repo)
        commit = found.resolve(revision)
        row = {"_id": "0", "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit.oid, "spaces": []}
        row |= {"lastModified": DATE, "createdAt": DATE, "private": found.private, "gated": False, "disabled": False}
        row |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in sorted(commit.files)]}
        self.reply(200, row | self.describe(commit))

    def describe(self, commit):
        """What the Hub works out from the card."""
        entry = commit.files.get("README.md")
        card = (card_metadata(self.server.blobs[entry.sha256].decode()) if entry else None) or {}
        library = card.get("library_name", "transformers" if "config.json" in commit.files else None)
        task = card.get("pipeline_tag")
        tags = [tag for tag in (library, task, *card.get("tags", [])) if tag]
        return {"cardData": card, "library_name": library, "pipeline_tag": task, "tags": tags}

    @route("GET", REPO + r"/auth-check(?P<write>/write)?")
    def auth_check(self, repo, write=""):
        self.repo(repo, write=bool(write))
        self.reply(200, {})

    @route("GET", REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def tree(self, repo, revision, path=""):
        files = self.repo(repo).resolve(revision).files
        start = path.strip("/") + "/" if path else ""
        inside = {name: entry for name, entry in files.items() if name.startswith(start)}
        if start and not inside:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        folders = {name.rsplit("/", 1)[0] for name in inside if "/" in name[len(start) :]}
        rows = [entry.row(name) for name, entry in inside.items()]
        rows += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders]
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            rows = [row for row in rows if "/" not in row["path"][len(start) :]]
        rows.sort(key=lambda row: row["path"])
        cursor, size, headers = int(self.query.get("cursor", 0)), self.server.page_size, {}
        if cursor + size < len(rows):
            more = urlencode(self.query | {"cursor": cursor + size})
            headers["Link"] = f'<{self.base}{self.route_path}?{more}>; rel="next"'
        self.reply(200, rows[cursor : cursor + size], headers)

    @route("POST", REPO + r"/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, repo, revision):
        files = self.repo(repo).resolve(revision).files
        asked = parse_qs(self.read_body().decode()).get("paths", [])
        self.reply(200, [files[path].row(path) for path in asked if path in files])

    @route("GET", REPO + r"/discussions")
    def discussions(self, repo):
        found = self.repo(repo)
        rows = [row | {"repo": {"name": repo, "type": "model"}} for row in reversed(found.pulls)]
        self.reply(200, {"discussions": rows, "count": len(rows), "start": 0})

    @route("GET", FILES + r"/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, repo, revision, path):
        commit = self.repo(repo).resolve(revision)
        entry = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers=headers)
        headers["ETag"] = f'"{entry.sha256 if entry.lfs else entry.oid}"'
        data, status = self.server.blobs[entry.sha256], 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(data)) + 1, len(data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            data, status = data[start:end], 206
        self.reply(status, data, headers)

    # uploads

    @route("POST", REPO + r"/preupload/(?P<revision>[^/]+)")
    def preupload(self, repo, revision):
        propose = "create_pr" in self.query
        files = self.repo(repo, write=not propose, contribute=True).resolve(revision).files
        ignored = set(self.server.blobs[files[".gitignore"].sha256].decode().split()) if ".gitignore" in files else ()
        rows = []
        for file in self.json().get("files", []):
            path = file["path"]
            large = path.endswith(LFS_SUFFIXES) or file["size"] > LFS_THRESHOLD
            row = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": path in ignored}
            if entry := files.get(path):
                row["oid"] = entry.sha256 if entry.lfs else entry.oid
            rows.append(row)
        self.reply(200, {"files": rows})

    @route("POST", FILES + r"\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo):
        self.repo(repo, contribute=True)
        rows = []
        for item in self.json().get("objects", []):
            row = {"oid": item["oid"], "size": item["size"], "authenticated": True}
            if item["oid"] not in self.server.blobs:
                upload = {"href": self.sign(f"/lfs/{item['oid']}/{item['size']}"), "header": {}}
                verify = {"href": f"{self.base}/{repo}.git/info/lfs/objects/verify"}
                row["actions"] = {"upload": upload, "verify": verify}
            rows.append(row)
        self.reply(200, {"transfer": "basic", "objects": rows, "hash_algo": "sha256"})

    @route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<size>\d+)", auth="signed")
    def lfs_put(self, oid, size):
        if self.server.put(self.body) != oid or len(self.body) != int(size):
            raise HubError(400, "These are other bytes than announced")
        self.reply(200, b"", {"ETag": f'"{oid}"'})

    @route("POST", FILES + r"\.git/info/lfs/objects/verify")
    def lfs_verify(self, repo):
        self.repo(repo, contribute=True)
        if self.json().get("oid") not in self.server.blobs:
            raise HubError(404, "The object was not uploaded")
        self.reply(200, {})

    @route("GET", REPO + r"/xet-write-token/(?P<revision>[^/]+)")
    def xet_token(self, repo, revision):
        if not self.server.xet:
            raise HubError(404, "Xet storage is not enabled here")
        propose = "create_pr" in self.query or revision == "None"
        self.repo(repo, write=not propose, contribute=True)
        expires, token = int(time.time()) + 3600, f"write.{self.mac('write')}"
        self.reply(200, {"casUrl": f"{self.base}/xet/{self.server.id}", "accessToken": token, "exp": expires})

    @route("POST", r"/xet/[^/]+/v1/xorbs/[^/]+/(?P<xorb>[0-9a-f]{64})", auth="xet")
    def xorb_put(self, xorb):
        if not xorb_chunks(self.body):
            raise HubError(400, "Not a xorb")
        self.reply(200, {"was_inserted": self.server.xorbs.setdefault(xorb, self.body) is self.body})

    @route("POST", r"/xet/[^/]+/v1/shards", auth="xet")
    def shard_put(self):
        try:
            for sha256, terms in shard_files(self.body):
                chunks = [xorb_chunk(self.server.xorbs[x], *c) for x, a, b in terms for c in self.chunks(x)[a:b]]
                if self.server.put(b"".join(chunks)) != sha256:
                    raise ValueError("the chunks do not make up the file")
        except (ValueError, LookupError, struct.error) as error:
            raise HubError(400, f"Bad shard: {error}") from error
        self.reply(200, {"result": 1})

    def chunks(self, xorb):
        return xorb_chunks(self.server.xorbs[xorb])

    # commits

    @route("POST", REPO + r"/commit/(?P<revision>[^/]+)")
    def commit(self, repo, revision):
        propose = "create_pr" in self.query
        self.repo(repo, write=not propose, contribute=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        changes = [self.change(line["key"], line["value"]) for line in lines if line["key"] != "header"]
        with self.server.lock:
            found = self.repo(repo)
            base = found.resolve(revision)
            if header.get("parentCommit") not in (None, base.oid):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(base.files)
            for path, entry in changes:
                if entry is not None:
                    files[path] = entry
                elif files.pop(path, None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            commit = found.add(files, base.oid, header["summary"])
            answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.base}/{repo}/commit/{commit.oid}"}
            ref = "refs/heads/main"
            if propose:
                number = len(found.pulls) + 1
                ref, answer["pullRequestUrl"] = f"refs/pr/{number}", f"{self.base}/{repo}/discussions/{number}"
                pull = {"num": number, "title": header["summary"], "status": "open", "isPullRequest": True}
                found.pulls.append(pull | {"author": {"name": self.user.name}, "createdAt": DATE})
            found.refs[ref] = commit.oid
        self.reply(200, answer)

    def change(self, key, value):
        """Check one operation of a commit: (path, entry or None)."""
        path = str(value.get("path", ""))
        if not path or path.startswith("/") or {"", ".", "..", ".git"} & set(path.split("/")):
            raise HubError(400, f"Invalid path: {path!r}")
        if key == "deletedFile":
            return path, None
        if key == "lfsFile":
            if value["oid"] not in self.server.blobs:
                raise HubError(400, f"The LFS object of {path} was not uploaded")
            return path, self.server.entry(self.server.blobs[value["oid"]], lfs=True)
        content = base64.b64decode(value["content"])
        if path == "README.md" and (errors := card_errors(content.decode())):
            raise HubError(400, "Invalid metadata in README.md", errors=[{"message": text} for text in errors])
        return path, self.server.entry(content)


class HubServer(ThreadingHTTPServer):
    """The server; a context manager that serves from a thread. Its state may be read and changed while it runs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, token="hf_loopback", user="user", orgs=(), xet=True, page_size=1000):
        self.accounts = {token: Account(user, "write", (user, *orgs))}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.xorbs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock, self.closing = threading.RLock(), threading.Event()
        self.secret, self.connections, self.xet, self.page_size = secrets.token_bytes(32), set(), xet, page_size
        self.id = uuid.uuid4().hex  # a part of the address of Xet storage, by which clients tell their caches apart
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.address}"

    def add_token(self, token, role="write", scopes=()):
        """A further token of the first user."""
        self.accounts[token] = replace(next(iter(self.accounts.values())), role=role, scopes=tuple(scopes))

    def inject(self, match, **fault):
        """Let a Fault wait for requests that match."""
        self.faults.append(Fault(match, **fault))

    def next_fault(self, request):
        with self.lock:
            fault = next((fault for fault in self.faults if fault.times and re.search(fault.match, request)), None)
            if fault is not None:
                fault.times -= fault.times > 0
            return fault

    def create(self, repo, private=True, files=()):
        """A repository with an initial commit; `files`: path -> content."""
        made = Repo(repo, private)
        content = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", **dict(files)}
        entries = {path: self.entry(data, path.endswith(LFS_SUFFIXES)) for path, data in content.items()}
        made.refs["refs/heads/main"] = made.add(entries, None, "initial commit").oid
        self.repos[repo] = made
        return made

    def put(self, data):
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return sha256

    def entry(self, data, lfs=False):
        sha256 = self.put(data)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        return Entry(git_hash(pointer if lfs else data), sha256, len(data), lfs)

    def files(self, repo, revision="main"):
        """path -> content of a commit, without .gitattributes."""
        files = self.repos[repo].resolve(revision).files
        return {path: self.blobs[entry.sha256] for path, entry in files.items() if path != ".gitattributes"}

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):  # those come from connections that were cut
            super().handle_error(request, client_address)

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
