"""A Hugging Face hub on loopback, for the real client libraries: `HF_ENDPOINT=hub.url`.

It speaks what downloading needs: what a repository holds, its files with commit, entity tag and
size, parts of files, and the hub's errors. Large files (safetensors, parquet) are answered as the
hub does, by a redirect to a store at another origin, which must never see the token.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?"
)


@dataclass
class Repository:
    """Files by path, at one commit, which is all that `main` has. `refusal`: a status, and the
    hub's X-Error-Code and X-Error-Message."""

    files: dict[str, bytes]
    pinned: str | None = None
    refusal: tuple[int, str, str] | None = None

    @property
    def commit(self) -> str:
        """The one it is pinned to, or one that follows from the content (40 hex digits)."""
        digest = hashlib.sha1()
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + hashlib.sha1(content).digest())
        return self.pinned or digest.hexdigest()


@dataclass
class Asked:
    """One request that came in."""

    method: str
    path: str
    origin: str | None
    token: str | None
    part: str | None  # the Range header


@dataclass
class Hub:
    """The server, in a thread of its own from `with` on.

    `cut` has the files of which the next so many downloads break off half way, by the end of
    their name; `stalled` those that come half and then no further; `pause` is how long, in
    seconds, each tenth of a large file takes; `silent` lets every request wait for good.
    """

    repositories: dict[tuple[str, str], Repository]
    cut: dict[str, int] = field(default_factory=dict)
    stalled: str | None = None
    pause: float = 0.0
    silent: bool = False
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Hub:
        hub, self.closing = self, threading.Event()

        class Handler(_Handler):
            served = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        """What `HF_ENDPOINT` is to be."""
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def store(self) -> str:
        """The origin of large files."""
        return f"http://localhost:{self.server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        about = (self.headers.get(name) for name in ("Host", "Authorization", "Range"))
        self.served.asked.append(Asked(self.command, path, *about))
        if self.served.silent:
            self.served.closing.wait()
        elif path.startswith("/store/"):
            self._file(path.removeprefix("/store/"))
        elif found := RESOLVE.fullmatch(path):
            kind, name, revision, file = found.groups()
            self._resolve(kind or "models", name, revision, file)
        elif found := API.fullmatch(path):
            kind, name, verb, revision, rest = found.groups()
            self._describe(kind, name, verb, revision or "main", (rest or "").strip("/"), body)
        else:
            self._fail(404, "", "Not Found")

    # ------------------------------------------------------------------------ what is there
    def _repository(self, kind: str, name: str, revision: str) -> Repository | None:
        """The repository, or null when the request has been refused."""
        found = self.served.repositories.get((kind, name))
        if found is None:
            self._fail(401, "RepoNotFound", "Repository not found")  # the hub does not say 404
        elif found.refusal is not None:
            self._fail(*found.refusal)
        elif revision not in ("main", found.commit):
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return found
        return None

    def _describe(
        self, kind: str, name: str, verb: str | None, revision: str, folder: str, body: bytes
    ) -> None:
        found = self._repository(kind, name, revision)
        if found is None:
            return
        if verb in ("tree", "paths-info"):
            asked = _asked_paths(body, str(self.headers["Content-Type"]))
            wanted = (lambda path: path in asked) if asked else _below(folder)
            entries = [_entry(path, found.files[path]) for path in found.files if wanted(path)]
            folders = {path.rpartition("/")[0] for path in found.files} - {""}
            entries += [
                {"type": "directory", "path": path, "oid": _sha1(path.encode()), "size": 0}
                for path in sorted(folders)
                if wanted(path)
            ]
            self._json(entries)
        else:
            siblings = [{"rfilename": path} for path in found.files]
            about = {"id": name, "sha": found.commit, "siblings": siblings, "tags": []}
            self._json({**about, "private": False, "gated": False, "downloads": 0, "likes": 0})

    def _resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        found = self._repository(kind, name, revision)
        if found is None:
            return
        commit = {"X-Repo-Commit": found.commit}
        if file not in found.files:
            self._fail(404, "EntryNotFound", "Entry not found", commit)
        elif file.endswith(LARGE):
            content = found.files[file]
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{_sha256(content)}"'}
            where = f"{self.served.store}/store/{kind}/{name}/{file}"
            self._send(302, b"", {**commit, **linked, "Location": where})
        else:
            self._file(f"{kind}/{name}/{file}", commit)

    # ------------------------------------------------------------------------------ answers
    def _file(self, place: str, headers: Mapping[str, str] | None = None) -> None:
        kind, owner, name, file = place.split("/", 3)
        content = self.served.repositories[kind, f"{owner}/{name}"].files[file]
        tag = {"ETag": f'"{_sha1(content)}"', "Accept-Ranges": "bytes", **(headers or {})}
        start, status = 0, 200
        if part := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(part[1]), 206
            tag["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], tag, self._writer(file))

    def _writer(self, file: str) -> Callable[[bytes], None]:
        hub = self.served
        for end, left in hub.cut.items():
            if file.endswith(end) and left and self.command == "GET":
                hub.cut[end] -= 1
                return self._half
        if hub.stalled is not None and file.endswith(hub.stalled):
            return self._half_and_wait
        return self._slowly if hub.pause and file.endswith(LARGE) else self._at_once

    def _at_once(self, body: bytes) -> None:
        self.wfile.write(body)

    def _half(self, body: bytes) -> None:
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def _half_and_wait(self, body: bytes) -> None:
        self._half(body)
        self.wfile.flush()
        self.served.closing.wait()

    def _slowly(self, body: bytes) -> None:
        size = len(body) // 10 + 1
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            self.wfile.flush()
            time.sleep(self.served.pause)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        told = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), told)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str],
        write: Callable[[bytes], None] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                (write or self._at_once)(body)
            except OSError:  # the client has gone
                self.close_connection = True


def _asked_paths(body: bytes, kind: str) -> list[str]:
    if not body:
        return []
    found = json.loads(body) if "json" in kind else parse_qs(body.decode())
    return [str(path) for path in found["paths"]]


def _below(folder: str) -> Callable[[str], bool]:
    return lambda path: path.startswith(f"{folder}/") if folder else True


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": _sha1(content),
    }
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
