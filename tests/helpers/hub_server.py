"""A Hub in this process: as much of huggingface.co's protocol as pushing and loading needs, in memory.

Start it before huggingface_hub is imported, and set the `environment` that leads there.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "t" * 34
Files = dict[str, bytes]


class RefusalError(Exception):
    """What the Hub answers instead: a status, a sentence, a code that the client knows."""

    def __init__(self, status: HTTPStatus, message: str, code: str | None = None, **more: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message} | more
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Repo:
    """Commits stay as they are; a branch names the newest of its own."""

    def __init__(self, gated: bool = False) -> None:
        self.gated = gated
        self.commits: dict[str, Files] = {}
        self.titles: list[str] = []
        self.branches: dict[str, str] = {}
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial")

    def commit(self, branch: str, files: Files, title: str) -> str:
        parts = [self.branches.get(branch, ""), title, *(f"{path} {git_oid(data)}" for path, data in files.items())]
        oid = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.titles.append(title)
        return oid

    def sha(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise RefusalError(HTTPStatus.NOT_FOUND, "Invalid rev id", "RevisionNotFound")
        return sha


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(sample: bytes) -> bool:
    """Does the Hub keep it as a large file? All that is no text."""
    return b"\0" in sample[:512]  # of what is longer, the client sends no more


class Hub(ThreadingHTTPServer):
    """Listens on a free port until closed. `drops`: where a request's line matches, its connection breaks midway."""

    daemon_threads = True
    drops: str | None = None
    dropped = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.blobs: Files = {}
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Break all connections, refuse new ones."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):  # closed by the client
                connection.shutdown(socket.SHUT_RDWR)

    def environment(self, cache: Path) -> dict[str, str]:
        # hf_xet would send large files by a protocol of its own.
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
        places = dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "HF_MODULES_CACHE"), str(cache))
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"} | switches | places


class Handler(BaseHTTPRequestHandler):
    """One method a route; what it returns is the answer's JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms between its head and its body
    server: Hub

    def answer(self) -> None:
        line = f"{self.command} {self.path}"
        if self.server.drops and re.search(self.server.drops, line):
            self.server.dropped += 1
            self.rfile.read(1)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        try:
            for methods, pattern, respond in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in methods.split():
                    with self.server.lock:
                        self.send(
                            respond(self, **{name: unquote(value) for name, value in match.groupdict("").items()})
                        )
                    return
            raise RefusalError(HTTPStatus.NOT_FOUND, f"the Hub of the tests has no {line}")
        except RefusalError as error:
            self.send(error.body, error.status, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def send(self, content: Any, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> None:
        if isinstance(content, tuple):
            content, headers = content
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def sign_in(self) -> None:
        if not self.signed_in:
            raise RefusalError(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")

    def repo(self, name: str) -> Repo:
        if name not in self.server.repos:  # strangers are not told whether it is private or does not exist
            status = HTTPStatus.NOT_FOUND if self.signed_in else HTTPStatus.UNAUTHORIZED
            raise RefusalError(status, "Repository not found", "RepoNotFound")
        return self.server.repos[name]

    def create(self) -> Any:
        self.sign_in()
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked.get("type") == "space":
            name = f"spaces/{name}"
        url = f"{self.server.url}/{name}"
        if name in self.server.repos:
            raise RefusalError(HTTPStatus.CONFLICT, "You already created this repo", url=url)
        self.server.repos[name] = Repo()
        return {"url": url}

    def branch(self, name: str, revision: str) -> Any:
        self.sign_in()
        repo = self.repo(name)
        repo.branches[revision] = repo.branches["main"]
        return {}

    def info(self, name: str, revision: str) -> Any:
        repo = self.repo(name)
        sha = repo.sha(revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        return {"id": name, "sha": sha, "gated": "manual" if repo.gated else False, "siblings": siblings}

    def tree(self, name: str, revision: str, folder: str) -> Any:
        repo = self.repo(name)
        files = repo.commits[repo.sha(revision)].items()
        inside = [(path, data) for path, data in files if not folder or path.startswith(f"{folder}/")]
        if not inside:
            raise RefusalError(HTTPStatus.NOT_FOUND, f"{folder} does not exist on {revision}", "EntryNotFound")
        return [{"type": "file", "path": path, "size": len(data), "oid": git_oid(data)} for path, data in inside]

    def resolve(self, name: str, revision: str, path: str) -> Any:
        repo = self.repo(name)
        sha = repo.sha(revision)
        if repo.gated:
            status = HTTPStatus.FORBIDDEN if self.signed_in else HTTPStatus.UNAUTHORIZED
            raise RefusalError(status, f"Access to model {name} is restricted", "GatedRepo")
        if path not in repo.commits[sha]:
            missing = RefusalError(HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound")
            missing.headers["X-Repo-Commit"] = sha  # lets the client remember that it is missing there
            raise missing
        data = repo.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_oid(data)}"'}
        if is_large(data):
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        return data, headers

    def preupload(self, name: str, revision: str) -> Any:
        self.sign_in()
        repo = self.repo(name)
        old, answers = repo.commits[repo.sha(revision)], []
        for file in json.loads(self.body)["files"]:
            path, large = file["path"], is_large(base64.b64decode(file["sample"]))
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
            if path in old:  # lets the client leave out what has not changed
                answers[-1]["oid"] = hashlib.sha256(old[path]).hexdigest() if large else git_oid(old[path])
        return {"files": answers}

    def batch(self, name: str) -> Any:
        self.sign_in()
        answers = []
        for file in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/lfs/{file['oid']}"}}
            answers.append(file | ({} if file["oid"] in self.server.blobs else {"actions": actions}))
        return {"transfer": "basic", "objects": answers}

    def put(self, oid: str) -> Any:
        self.server.blobs[oid] = self.body
        return {}

    def commit(self, name: str, revision: str) -> Any:
        self.sign_in()
        repo, title = self.repo(name), ""
        files = dict(repo.commits[repo.sha(revision)])
        for line in self.body.splitlines():
            key, value = json.loads(line)["key"], json.loads(line)["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        oid = repo.commit(revision, files, title)
        return {"commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"}


NAME, REVISION = "(?P<name>(?:spaces/)?[^/]+/[^/]+)", "(?P<revision>[^/]+)"  # a Space is known by "spaces/..."
REPO = f"/api/(?:models/|(?=spaces/)){NAME}"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", lambda handler: {"errors": [], "warnings": []}),
    ("GET", f"{REPO}(?:/revision/{REVISION})?", Handler.info),
    ("GET", f"{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    ("POST", f"{REPO}/branch/{REVISION}", Handler.branch),
    ("POST", f"{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/{NAME}\\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.put),
    ("POST", f"{REPO}/commit/{REVISION}", Handler.commit),
    ("GET HEAD", f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
)
