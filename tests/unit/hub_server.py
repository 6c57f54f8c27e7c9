"""A model hub on this machine: the parts of its interface that fetching needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@dataclass
class Hub:
    """What the hub has, and what it was asked for.

    `models` is repository -> path -> content; `gated` are those that ask for a licence; a file
    whose name is in `broken` loses its connection after half of what is left, once.
    """

    models: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            self.answer(head=False)

        def answer(self, *, head: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?.*", path)
            repo = (file or api)[1] if (file or api) else ""
            revision = (file[2] if file else api and api[3]) or "main"
            if repo in hub.gated:
                self.refuse(403, "GatedRepo")
            elif repo not in hub.models:
                self.refuse(404 if repo else 400, "RepoNotFound")
            elif revision not in {*COMMITS, *COMMITS.values()}:
                self.refuse(404, "RevisionNotFound")
            elif file and file[3] not in hub.models[repo]:
                self.refuse(404, "EntryNotFound")
            elif file:
                self.send_file(repo, COMMITS.get(revision, revision), file[3], head=head)
            else:
                self.send_json(repo, COMMITS.get(revision, revision), is_tree=api[2] == "tree")

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_file(self, repo: str, commit: str, name: str, *, head: bool) -> None:
            content = hub.models[repo][name]
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            if head:
                return
            if name in hub.broken:
                hub.broken.discard(name)
                self.wfile.write(content[start : (start + len(content)) // 2])
                self.close_connection = True
                return
            self.wfile.write(content[start:])

        def send_json(self, repo: str, commit: str, *, is_tree: bool) -> None:
            entries = [
                {
                    "type": "file", "path": name, "rfilename": name, "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for name, content in hub.models[repo].items()
            ]  # fmt: skip
            answer = entries if is_tree else {"id": repo, "sha": commit, "siblings": entries}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
