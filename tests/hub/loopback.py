"""A writable Hub on 127.0.0.1 for the real clients, with faults on demand; it holds everything in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_repo import DATE, Repo

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".pth", ".pkl", ".png")


@dataclass
class Fault:
    """What the next `times` requests that match get instead of an answer.

    `status` answers with that code; `cut` reads or sends so many bytes and drops the connection; `replace` changes the
    body of an answer, and its length if that differs; `then` is called before, for what happens meanwhile.
    """

    method: str
    path: str
    status: int | None = None
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    replace: bytes | None = None
    then: Callable[[], object] | None = None
    times: int = 1_000_000


class LoopbackHub:
    """Start with `with LoopbackHub() as hub`; `hub.url` is what HF_ENDPOINT should be."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fault(self, method: str, path: str, **options) -> Fault:
        fault = Fault(method, path, **options)
        self.faults.append(fault)
        return fault

    def put(self, repo_id: str, files: dict[str, bytes], repo_type="model", branch="main", title="edit by hand"):
        """Commit files past the client, as a person does in the browser; creates repository and branch."""
        repo = self.repos.setdefault((repo_type, repo_id), Repo(False))
        added = {path: (data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
        return repo.commit(branch, added, [], title, repo.branches.get(branch) or repo.branches["main"])

    def files(self, repo_id: str, repo_type="model", revision="main") -> dict[str, bytes]:
        repo = self.repos[repo_type, repo_id]
        return {path: entry.data for path, entry in repo.commits[repo.resolve(revision)]["files"].items()}

    def count(self, method: str, pattern: str, status: int | None = None) -> int:
        """Number of requests that were answered."""
        return sum(
            m == method and bool(re.search(pattern, path)) and status in (None, code) for m, path, code in self.log
        )


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self):
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.route = unquote(parts.path)
        self.replacement = self.cut = None
        length = int(self.headers.get("Content-Length", 0))
        with self.hub.lock:
            fault = next(
                (f for f in self.hub.faults if f.times and f.method == self.command and re.search(f.path, self.route)),
                None,
            )
            if fault is not None:
                fault.times -= 1
        if fault is not None:
            if fault.then is not None:
                fault.then()
            if fault.cut is not None and self.command in ("PUT", "POST"):
                self.rfile.read(min(length, fault.cut))
                return self._drop()
            self.cut, self.replacement = fault.cut, fault.replace
        body = self.rfile.read(length)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if fault is not None and fault.status is not None:
            return self._send(fault.status, fault.body, fault.headers)
        with self.hub.lock:
            self._answer(body)

    def _drop(self):
        """Close with a reset, as a lost network does."""
        self.hub.log.append((self.command, self.route, 0))
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The socket is closed when nothing made of it is open.
        self.rfile.close()
        self.connection.close()

    def _send(self, status=200, body=b"", headers=None):
        if self.replacement is not None:
            body = self.replacement
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            body = b""
        if self.cut is not None:
            self.wfile.write(body[: self.cut])
            return self._drop()
        self.wfile.write(body)
        self.hub.log.append((self.command, self.route, status))

    def _json(self, value, status=200, headers=None):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status, code, message):
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def _rights(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        return self.hub.tokens.get(token, "invalid") if token else None

    def _answer(self, body: bytes):
        rights, route = self._rights(), self.route
        if rights == "invalid":
            return self._json({"error": "Invalid credentials in Authorization header"}, 401)
        # An object is put to an address that is itself the permission, as on the Hub.
        open_to_all = "paths-info" in route or route.startswith("/objects/")
        if self.command in ("POST", "PUT", "DELETE") and rights != "write" and not open_to_all:
            return self._json({"error": "Forbidden: write access is needed"}, 403 if rights else 401)
        if route == "/api/whoami-v2":
            return self._json({"type": "user", "name": "user", "orgs": [], "auth": {"type": "access_token"}})
        if route == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if route == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/objects/(\w{64})", route):
            if hashlib.sha256(body).hexdigest() != match[1]:
                return self._json({"error": "wrong hash"}, 400)
            self.hub.objects[match[1]] = body
            return self._send()
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", route):
            return self._batch(json.loads(body))
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", route):
            kind = (match[1] or "models/")[:-2]
            return self._with_repo(kind, match[2], lambda repo: self._resolve(repo, match[3], match[4]))
        if match := re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/(.*))?", route):
            return self._with_repo(match[1], match[2], lambda repo: self._api(repo, match, body))
        self._refuse(404, "NotFound", f"no such route: {route}")

    def _with_repo(self, kind, repo_id, answer):
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and self._rights() is None):
            return self._refuse(404 if self._rights() else 401, "RepoNotFound", "Repository not found")
        return answer(repo)

    def _create(self, values):
        repo_id = f"{values.get('organization') or 'user'}/{values['name']}"
        key = (values.get("type", "model"), repo_id)
        prefix = "" if key[0] == "model" else f"{key[0]}s/"
        answer = {"url": f"{self.hub.url}/{prefix}{repo_id}", "name": repo_id, "id": repo_id}
        if key in self.hub.repos:
            return self._json({**answer, "error": "You already created this repo"}, 409)
        self.hub.repos[key] = Repo(values.get("visibility") == "private" or values.get("private", False))
        self._json(answer)

    def _batch(self, values):
        objects = []
        for wanted in values["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                found["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}"}}
            objects.append(found)
        self._json({"transfer": "basic", "objects": objects})

    def _api(self, repo, match, body):
        kind, repo_id, rest = match[1], match[2], match[3] or ""
        verb, _, rest = rest.partition("/")
        if verb == "branch":
            if rest in repo.branches:
                return self._json({"error": "Reference already exists"}, 409)
            start = json.loads(body or b"{}").get("startingPoint") or "main"
            repo.branches[rest] = repo.branches.get(start, start)
            return self._json({})
        if verb == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()]
            return self._json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})
        revision = re.match(r"refs/pr/\d+|[^/]*", rest)[0] or "main"
        path = rest[len(revision) :].strip("/")
        sha = repo.resolve(revision)
        if sha is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[sha]["files"]
        if verb in ("", "revision"):
            return self._json(self._info(repo, repo_id, sha, files))
        if verb == "preupload":
            wanted = json.loads(body)["files"]
            return self._json({"files": [self._upload_mode(file, files) for file in wanted]})
        if verb == "commit":
            return self._commit(repo, kind, repo_id, revision, sha, body)
        if verb == "commits":
            return self._json(list(repo.history(sha)))
        if verb == "tree":
            return self._json(self._tree(repo, files, path))
        if verb == "paths-info":
            values = json.loads(body) if body[:1] == b"{" else parse_qs(body.decode())
            wanted = values["paths"] if isinstance(values["paths"], list) else [values["paths"]]
            return self._json([e for e in self._tree(repo, files, "", True) if e["path"] in wanted])
        self._refuse(404, "NotFound", f"no such route: {self.route}")

    def _info(self, repo, repo_id, sha, files):
        siblings = [{"rfilename": path} for path in files]
        fields = {"id": repo_id, "sha": sha, "siblings": siblings, "tags": [], "private": repo.private}
        return {**fields, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "lastModified": DATE}

    def _upload_mode(self, file, files):
        lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > 2**20
        known = files.get(file["path"])
        found = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        return {**found, **({"oid": known.oid} if known else {})}

    def _commit(self, repo, kind, repo_id, revision, sha, body):
        added, deleted, header = {}, [], {}
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                header = value
            elif step["key"] == "file":
                added[value["path"]] = (base64.b64decode(value["content"]), False)
            elif step["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._json({"error": f"LFS object {value['oid']} is missing"}, 400)
                added[value["path"]] = (self.hub.objects[value["oid"]], True)
            else:
                deleted.append(value["path"] + ("/" if step["key"] == "deletedFolder" else ""))
        if header.get("parentCommit") not in (None, sha):
            return self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
        branch, url = revision, {}
        if self.query.get("create_pr"):
            repo.pull_requests += 1
            branch = f"refs/pr/{repo.pull_requests}"
            url = {"pullRequestUrl": f"{self.hub.url}/{repo_id}/discussions/{repo.pull_requests}"}
        oid = repo.commit(branch, added, deleted, header["summary"], sha, header.get("description", ""))
        prefix = "" if kind == "model" else f"{kind}s/"
        address = f"{self.hub.url}/{prefix}{repo_id}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": address, **url})

    def _tree(self, repo, files, folder, recursive=None):
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true" if recursive is None else recursive
        found = {}
        for path, entry in files.items():
            if folder and not path.startswith(folder + "/"):
                continue
            below = path[len(folder) :].lstrip("/") if folder else path
            parents = below.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                name = "/".join(filter(None, [folder, *parents[:depth]]))
                if recursive or depth == 1:
                    found[name] = {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
            if recursive or not parents:
                found[path] = entry.describe(path, repo.commits)
        return list(found.values())

    def _resolve(self, repo, revision, path):
        sha = repo.resolve(revision)
        if sha is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        entry = repo.commits[sha]["files"].get(path)
        if entry is None:
            return self._json(
                {"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            )
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.oid}"', "Accept-Ranges": "bytes"}
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.oid}"', "X-Linked-Size": str(len(entry.data))}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            if self.command == "HEAD":
                headers["Content-Length"] = str(len(entry.data))
            return self._send(200, entry.data, headers)
        size = len(entry.data)
        start = int(wanted[1]) if wanted[1] else size - int(wanted[2])
        end = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        self._send(206, entry.data[start : end + 1], headers)
