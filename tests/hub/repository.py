"""A repository of the loopback Hub: blobs, commits and refs in memory, named by their contents as git names them.

Nothing here knows about HTTP except [`HubError`], the one way in which a request is refused.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise

# What the Hub tracks as large files in a new repository, whatever their size.
LFS_SUFFIX_NAMES = (
    "7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar "
    "safetensors tar tflite tgz wasm xz zip zst"
)
LFS_SUFFIXES = tuple(LFS_SUFFIX_NAMES.split())
LFS_SIZE = 10 * 1024**2
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class HubError(Exception):
    """A refused request.

    Args:
        status (`int`): HTTP status.
        message (`str`): what the client shows (`X-Error-Message` and the body's `error`).
        code (`str`, *optional*): `X-Error-Code`, which the clients turn into an exception class.
        body (`dict`, *optional*): more fields of the JSON body.
        headers (`dict`, *optional*): more headers.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, body: dict | None = None, headers: dict | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body, self.headers = body or {}, headers or {}


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes through LFS: by its suffix, its size, or because it is binary. Empty files never do."""
    suffix = path.rsplit(".", 1)[-1].lower() if "." in path else ""
    return size > 0 and (suffix in LFS_SUFFIXES or size > LFS_SIZE or b"\0" in sample)


def git_hash(kind: str, content: bytes) -> str:
    """The name of a git object: SHA-1 over its header and content."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """One file's content. `sha256` is set where it is stored through LFS."""

    content: bytes = field(repr=False)
    sha256: str | None = None

    @property
    def pointer(self) -> bytes:
        """What git itself holds for the file: the LFS pointer, or the content."""
        if self.sha256 is None:
            return self.content
        size = len(self.content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def oid(self) -> str:
        return git_hash("blob", self.pointer)

    @property
    def etag(self) -> str:
        """SHA-256 of a large file, git's name of a small one: by this name the clients cache it."""
        return self.sha256 or self.oid

    @property
    def lfs(self) -> dict | None:
        """The file's LFS fields in a tree listing; None where it is not stored through LFS."""
        if self.sha256 is None:
            return None
        return {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}


def make_blob(path: str, content: bytes) -> Blob:
    """The blob of `content` at `path`, stored through LFS where the Hub would."""
    large = is_large(path, len(content), content[:512])
    return Blob(content, hashlib.sha256(content).hexdigest() if large else None)


def folder_oids(files: dict[str, Blob]) -> dict[str, str]:
    """`{folder: tree oid}` of every folder above the files; the root is `""`."""
    children: dict[str, dict[str, str]] = {"": {}}
    for path, blob in files.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, {})[name] = f"100644 {blob.oid}"
        while folder:
            folder = folder.rpartition("/")[0]
            children.setdefault(folder, {})
    oids: dict[str, str] = {}
    for folder in sorted(children, key=lambda name: -(name.count("/") + bool(name))):
        entries = "".join(f"{entry} {name}\n" for name, entry in sorted(children[folder].items()))
        oids[folder] = git_hash("tree", entries.encode())
        if folder:
            above, _, name = folder.rpartition("/")
            children[above][name] = f"40000 {oids[folder]}"
    return oids


@dataclass(frozen=True)
class Commit:
    """A commit: the whole tree at that time, and the `sha` of the commit before it."""

    files: dict[str, Blob] = field(repr=False)
    title: str
    message: str
    author: str
    date: str
    parent: str | None

    @cached_property
    def sha(self) -> str:
        text = f"tree {folder_oids(self.files)['']}\nparent {self.parent}\nauthor {self.author} {self.date}\n\n"
        return git_hash("commit", (text + f"{self.title}\n\n{self.message}").encode())


@dataclass
class Repository:
    """A model, data set or Space: its commits by `sha`, and the refs that point at them."""

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        first = self.new_commit({".gitattributes": Blob(GIT_ATTRIBUTES)}, "initial commit")
        self.branches["main"] = first.sha

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    def new_commit(
        self, files: dict[str, Blob], title: str, message: str = "", author: str = "system", parent: str | None = None
    ) -> Commit:
        """Stores a commit; it is the caller who points a ref at it."""
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        commit = Commit(dict(sorted(files.items())), title, message, author, date, parent)
        self.commits[commit.sha] = commit
        return commit

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request ref or full commit id names."""
        for refs in (self.branches, self.tags, self.pull_requests):
            if revision in refs:
                return self.commits[refs[revision]]
        if revision in self.commits:
            return self.commits[revision]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        """Commits from `revision` back to the first, newest first."""
        commit = self.resolve(revision)
        commits = [commit]
        while commit.parent is not None:
            commit = self.commits[commit.parent]
            commits.append(commit)
        return commits

    def last_change(self, path: str, revision: str) -> Commit:
        """The newest commit in which the file at `path` differs from the commit before."""
        commits = self.history(revision)
        for commit, before in pairwise(commits):
            if commit.files.get(path) != before.files.get(path):
                return commit
        return commits[-1]

    def commit(
        self,
        branch: str,
        files: dict[str, Blob],
        title: str,
        message: str = "",
        author: str = "system",
        pull_request: bool = False,
    ) -> tuple[Commit, int | None]:
        """Makes `files` the whole tree of a new commit on `branch`, or of a new pull request against it.

        Returns:
            The commit, and the pull request's number where one was opened.
        """
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        commit = self.new_commit(files, title, message, author, self.branches[branch])
        if pull_request:
            number = len(self.pull_requests) + 1
            self.pull_requests[f"refs/pr/{number}"] = commit.sha
            return commit, number
        self.branches[branch] = commit.sha
        return commit, None
