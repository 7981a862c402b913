"""Commits and branches of a repository of the loopback Hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

DATE = "2025-01-01T00:00:00.000Z"


@dataclass
class Entry:
    data: bytes
    lfs: bool
    commit: str

    @property
    def oid(self) -> str:
        """As the Hub has it: git's hash of a small file, SHA-256 of a large one."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def describe(self, path: str, commits: dict) -> dict:
        found = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        if self.lfs:
            found["lfs"] = {"oid": self.oid, "size": len(self.data), "pointerSize": 134}
        commit = {"id": self.commit, "title": commits[self.commit]["title"], "date": DATE}
        return {**found, "lastCommit": commit}


class Repo:
    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict] = {}
        self.branches: dict[str, str] = {}
        self.pull_requests = 0
        self.commit("main", {}, [], "initial commit", None)

    def commit(self, branch, added, deleted, title, parent, description=""):
        """Record files `{path: (data, lfs)}` on top of a branch and return the new commit's hash."""
        before = self.commits[parent]["files"] if parent else {}
        # As in git: clients keep what they know of a commit, so another content needs another hash.
        contents = [(path, hashlib.sha1(data).hexdigest()) for path, (data, _) in sorted(added.items())]
        text = f"{parent}{branch}{title}{len(self.commits)}{contents}{deleted}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        kept = {
            path: entry
            for path, entry in before.items()
            if not any(path == name or (name.endswith("/") and path.startswith(name)) for name in deleted)
        }
        files = {**kept, **{path: Entry(data, lfs, sha) for path, (data, lfs) in added.items()}}
        self.commits[sha] = {"title": title, "description": description, "files": files, "parent": parent}
        self.branches[branch] = sha
        return sha

    def history(self, sha):
        """The commits of a branch as the Hub lists them, the last one first."""
        while sha is not None:
            found = self.commits[sha]
            yield {"id": sha, "authors": [], "date": DATE, "title": found["title"], "message": found["description"]}
            sha = found["parent"]

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)
