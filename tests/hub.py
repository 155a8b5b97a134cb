"""A small hub on this computer that speaks as much of the real one's protocol as `huggingface_hub` asks of it.

Repositories in memory, with commits that are all or nothing and know their parent; large files go by Git LFS, whose
objects have to be there before a commit names them; a card is checked before it is taken.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_" + "aToken0fNobody" * 3
LFS = (".safetensors",)


@dataclass
class Repo:
    """A repository: its files as they are now, and the message of each commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    lfs: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        """Of the last commit."""
        return hashlib.sha1(repr((sorted(self.files.items()), self.messages)).encode()).hexdigest()


@dataclass
class Hub:
    """What the server knows, and what it was asked.

    Attributes:
        url: its endpoint.
        repos: by type and name, as in models/user/name.
        objects: of Git LFS, by SHA-256.
        requests: method and path of every request.
        answers: what it answers instead, by the beginning of "METHOD /path": status and text.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing on the console."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        for begins, (status, text) in self.hub.answers.items():
            if f"{self.command} {path}".startswith(begins):
                return self.send(status, text.replace("TOKEN", self.headers.get("Authorization", "")))
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, "Invalid username or password.")
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, body, *match.groups())
        return self.send(404, f"no such route: {path}")

    def chunks(self) -> bytes:
        """A body of unknown length."""
        parts = []
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, content: Any, **headers: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content if isinstance(content, dict) else {"error": content}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def found(self, name: str) -> Repo | None:
        if name not in self.hub.repos:
            self.send(404, "Repository not found", X_Error_Code="RepoNotFound")
        return self.hub.repos.get(name)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            return self.send(409, "You already created this repository")
        self.hub.repos[name] = Repo(asked.get("visibility") == "private")
        return self.send(200, {"url": f"{self.hub.url}/{name.removeprefix('models/')}"})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if repo := self.found(name):
            siblings = [
                {"rfilename": file, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
                for file, content in sorted(repo.files.items())
            ]
            about = {"id": name.partition("/")[2], "private": repo.private, "sha": repo.sha, "tags": []}
            self.send(200, about | {"siblings": siblings})

    def check_card(self, body: bytes) -> None:
        data = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        base = data.get("base_model", "a/b")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
            message = f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
            return self.send(400, {"errors": [{"message": message}], "warnings": []})
        return self.send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        if self.found(name):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.send(200, {"files": files})

    def batch(self, body: bytes, name: str) -> None:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}},
            }
            for one in json.loads(body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.send(200, {})

    def commit(self, body: bytes, name: str) -> None:
        repo = self.found(name)
        if repo is None:
            return None
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", repo.sha) != repo.sha:
            return self.send(412, "A commit has happened since. Please refresh and try again.")
        files, lfs = dict(repo.files), set(repo.lfs)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                lfs.add(value["path"])
            else:
                assert operation["key"] == "deletedFile"
                del files[value["path"]]
        repo.files, repo.lfs = files, lfs
        repo.messages.append(header["value"]["summary"])
        return self.send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{repo.sha}", "commitOid": repo.sha})

    def resolve(self, body: bytes, name: str, file: str) -> None:
        repo = self.found(f"models/{name}")
        if repo is None:
            return None
        if file not in repo.files:
            return self.send(404, "Entry not found", X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha1(repo.files[file]).hexdigest()}"'
        return self.send(200, repo.files[file], X_Repo_Commit=repo.sha, ETag=etag)


_TYPED = r"((?:models|datasets)/[^/]+/[^/]+)"
ROUTES = [
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.check_card),
    (rf"GET /api/{_TYPED}(?:/revision/([^/]+))?", Handler.info),
    (rf"POST /api/{_TYPED}/preupload/main", Handler.preupload),
    (rf"POST /api/{_TYPED}/commit/main", Handler.commit),
    (r"POST /(.+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/([0-9a-f]{64})", Handler.put),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/[^/]+/(.+)", Handler.resolve),
]


@contextmanager
def served() -> Iterator[Hub]:
    """The hub while the context lasts."""
    hub = Hub()
    handler = type("Served", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reached(hub: Hub, patch: pytest.MonkeyPatch, cache: str) -> None:
    """Has this process's `huggingface_hub` talk to `hub`, as HF_ENDPOINT does to a process that starts with it."""
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": cache,
    }.items():
        patch.setattr(constants, name, value)
    patch.setenv("HF_TOKEN", TOKEN)
