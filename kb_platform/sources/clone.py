"""The git clone around a file: its tags with dates and annotations, and where it was cloned from.

Belongs here: asking the `git` command, and understanding what it prints. Does not belong here: versions, releases.

A clone is a stranger's: its configuration can name programs for git to run. Only commands that read references, the
index and the configuration are asked, with every hook, monitor and transport off; git's own check of who owns a clone
stays on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote, urlsplit

from kb_platform.errors import SourceError

TIMEOUT_S: Final = 60.0
# 100,000 tags with a page of notes each.
MAX_OUTPUT_BYTES: Final = 256 * 1_048_576
EARLIEST: Final = datetime(1980, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)

_OFF: Final = (
    "--no-pager", "--no-optional-locks", "--literal-pathspecs", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
    "-c", "protocol.allow=never", "-c", "core.pager=cat", "-c", "safe.bareRepository=explicit", "-c", "credential.helper=",
)  # fmt: skip
_FIELDS: Final = (
    "%(refname)",
    "%(objecttype)",
    "%(creatordate:unix)",
    "%(contents:signature)",
    "%(contents)",
)
_SCP_LIKE: Final = re.compile(r"(?:[\w.+-]+@)?(?P<host>[\w.-]+):(?!//)(?P<path>[^:]+)")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_PATH: Final = re.compile(r"[\w.-]+(?:/[\w.-]+)+")


@dataclass(frozen=True)
class Tag:
    """A tag. `dated`: when it was made, or its commit where it is a mere name; None where that is no sensible time.

    `annotation`: the words of an annotated tag, without its signature. `raw`: what git printed of it.
    """

    name: str
    dated: datetime | None
    annotation: str
    raw: bytes


@dataclass(frozen=True)
class Forge:
    """Where a clone came from, as a person reads it in a browser: `https://HOST` and the repository's path."""

    address: str
    path: str

    @property
    def _infix(self) -> str:
        return "/-" if "gitlab" in self.address else ""

    def release_url(self, tag: str) -> str:
        """The page of a tag's release."""
        page = "tags" if self._infix else "releases/tag"
        return f"{self.address}/{self.path}{self._infix}/{page}/{quote(tag)}"

    def file_url(self, path: str) -> str:
        """The page of a file, as it is now."""
        return f"{self.address}/{self.path}{self._infix}/blob/HEAD/{quote(path)}"


@dataclass(frozen=True)
class Clone:
    """What a clone says. `path`: the file, from the clone's root. `remotes`: by name."""

    path: str
    tags: tuple[Tag, ...]
    remotes: dict[str, Forge]

    def forge(self, repository: str) -> Forge | None:
        """Where `repository` is found: the remote of that name, else the host of `origin` or of the only remote.

        A clone of a fork names the fork; its releases are those of the repository that it is a fork of.
        """
        for forge in self.remotes.values():
            if forge.path.lower() == repository.lower():
                return forge
        origin = self.remotes.get("origin") or (
            next(iter(self.remotes.values())) if len(self.remotes) == 1 else None
        )
        # A path of more than two parts is a group's project, which `repository` can only abbreviate.
        return origin and (origin if origin.path.count("/") > 1 else Forge(origin.address, repository))


def read_clone(
    file: Path,
    *,
    git: str | None = None,
    timeout_s: float = TIMEOUT_S,
    max_output_bytes: int = MAX_OUTPUT_BYTES,
) -> Clone | None:
    """The clone that tracks a file; None where there is no `git`, no clone, or the clone does not know the file.

    `git`: the command; found on the path unless given. Raises SourceError where git refuses, hangs or says nonsense.
    """
    command = git or shutil.which("git")
    if command is None:
        return None
    real = file.resolve()
    asked = _Git(command, real.parent, timeout_s, max_output_bytes)
    tracked = asked.ask("ls-files", "--full-name", "--error-unmatch", "-z", "--", real.name, absent=True)
    if tracked is None:
        return None
    path = tracked.partition(b"\0")[0].decode(errors="backslashreplace")
    shown = asked.ask("for-each-ref", f"--format={'%00'.join(_FIELDS)}%00", "refs/tags/") or b""
    found = asked.ask("config", "--local", "-z", "--get-regexp", r"^remote\..*\.url$", absent=True) or b""
    return Clone(path, tuple(_tags(shown)), _remotes(found))


@dataclass(frozen=True)
class _Git:
    """Asks git about one folder."""

    command: str
    folder: Path
    timeout_s: float
    max_output_bytes: int

    def ask(self, *arguments: str, absent: bool = False) -> bytes | None:
        """What git prints. `absent`: None where it says that there is no such thing, or no clone at all."""
        status, output, complaint = self._run(["-C", str(self.folder), *_OFF, *arguments])
        if status == 0:
            return output
        if absent and (status == 1 or "not a git repository" in complaint):
            return None
        if "dubious ownership" in complaint:
            raise SourceError(
                f"git does not trust the clone around {self.folder}, which belongs to someone else",
                hint="check who it is, then: git config --global --add safe.directory FOLDER",
            )
        said = complaint.strip().splitlines()[:1] or [f"exit status {status}"]
        raise SourceError(
            f"git cannot read the clone around {self.folder}: {said[0][:300]}",
            hint="mend the clone, or import a copy of the file from outside of it (its tags are then not known)",
        )

    def _run(self, arguments: Sequence[str]) -> tuple[int, bytes, str]:
        with subprocess.Popen(  # noqa: S603 - fixed arguments and a folder
            [self.command, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(self.command),
        ) as process:  # fmt: skip
            late = threading.Event()

            def stop() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(self.timeout_s, stop)
            timer.start()
            try:
                complaints: list[bytes] = []
                reader = threading.Thread(target=lambda: complaints.append(_drain(process.stderr)))
                reader.start()
                output = process.stdout.read(self.max_output_bytes + 1) if process.stdout else b""
                if len(output) > self.max_output_bytes:
                    process.kill()
                reader.join()
                status = process.wait()
            finally:
                timer.cancel()
        if late.is_set():
            raise SourceError(
                f"git did not answer within {self.timeout_s:g} s about {self.folder}",
                hint="is it on a network drive that hangs?",
            )
        if len(output) > self.max_output_bytes:
            raise SourceError(
                f"the tags of the clone around {self.folder} have more than {self.max_output_bytes:,} bytes",
                hint="import a copy of the file from outside of the clone",
            )
        return status, output, b"".join(complaints).decode(errors="backslashreplace")


def _drain(stream: IO[bytes] | None) -> bytes:
    """The first words of a complaint; the rest is read and dropped, or git would wait for a reader."""
    if stream is None:
        return b""
    kept = stream.read(4_096)
    while stream.read(65_536):
        pass
    return kept


def _environment(command: str) -> dict[str, str]:
    """No variable of the caller's: GIT_DIR and the like would point elsewhere. The user's own settings stay."""
    environment = {
        "PATH": os.pathsep.join([str(Path(command).parent), os.defpath]),
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
    }
    with suppress(RuntimeError):
        environment["HOME"] = str(Path.home())
    return environment


def _tags(shown: bytes) -> Generator[Tag]:
    """The tags in what `for-each-ref` printed: five fields each, with NUL behind every one."""
    fields = shown.split(b"\0")
    for index in range(0, len(fields) - len(_FIELDS), len(_FIELDS)):
        reference, kind, moment, signature, contents = fields[index : index + len(_FIELDS)]
        name = reference.removeprefix(b"\n")
        if not name.startswith(b"refs/tags/"):
            raise SourceError(
                "git's list of tags is garbled: a tag's words contain NUL",
                hint="`git fsck` names the tag; or import a copy of the file from outside of the clone",
            )
        # The words of a lightweight tag are those of its commit, and say nothing of a release.
        words = contents.removesuffix(signature) if kind == b"tag" else b""
        yield Tag(
            name.removeprefix(b"refs/tags/").decode(errors="surrogateescape"),
            _moment(moment),
            words.decode(errors="surrogateescape").strip(),
            b"\0".join([name, kind, moment, signature, contents if kind == b"tag" else b""]),
        )


def _moment(seconds: bytes) -> datetime | None:
    try:
        moment = datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment if EARLIEST <= moment < LATEST else None


def _remotes(found: bytes) -> dict[str, Forge]:
    remotes: dict[str, Forge] = {}
    for entry in found.decode(errors="backslashreplace").split("\0"):
        key, _, url = entry.partition("\n")
        if (forge := forge_of(url)) is not None:
            remotes.setdefault(key.removeprefix("remote.").removesuffix(".url"), forge)
    return remotes


def forge_of(remote: str) -> Forge | None:
    """The forge behind a remote's address, without user and password; None where it is no host's repository.

    >>> forge_of("git@github.com:acme/tool.git")
    Forge(address='https://github.com', path='acme/tool')
    """
    host, path, scheme = "", "", "https"
    if "://" in remote:
        try:
            parts = urlsplit(remote)
            host, path = parts.hostname or "", parts.path
            if parts.scheme not in {"http", "https", "ssh", "git", "git+ssh", "git+https"}:
                return None
            if parts.scheme in {"http", "https"}:
                scheme = parts.scheme
                host += f":{parts.port}" if parts.port else ""
        except ValueError:
            return None
    elif match := _SCP_LIKE.fullmatch(remote):
        host, path = match["host"], match["path"]
    path = path.strip("/").removesuffix(".git")
    is_sound = _HOST.fullmatch(host.partition(":")[0]) and _PATH.fullmatch(path) and len(remote) < 1_000
    return Forge(f"{scheme}://{host}", path) if is_sound and ".." not in path.split("/") else None
