"""Run pip so that a person sees how far it is, and on failure why, and what to do. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BIG = re.compile(
    r"Downloading (?:\S*/)?(?P<file>[^/\s]+?)(?:-cp\d+\S*|-py\d\S*|\.tar\.gz)? \((?P<size>[\d.]+ [MG]B)\)"
)
NOTABLE_MB = 20.0
EVERY_SEC = 5.0  # between lines where no terminal rewrites one
LINE_CHARS = 400
UNREACHABLE = re.compile(
    r"ConnectionError|ConnectTimeout|NameResolutionError|NetworkConnectionError|ReadTimeout|ProxyError"
    r"|SSLError|connection (?:broken|error|timed out)|Could not fetch URL|Connection refused"
    r"|not a trusted or secure host",
    re.IGNORECASE,
)
REMEDIES = (
    (
        r"DO NOT MATCH THE HASHES",
        "a file is not the one that was locked, and was not installed; a mirror may rebuild files",
    ),
    (r"No space left on device|Errno 28", "free some disk, then run the same again"),
    (UNREACHABLE.pattern, "look at the network and the proxy; `pip config list` shows which index pip asks"),
    (
        r"No matching distribution|Could not find a version",
        "pip's index has no such file for this Python: see `pip config list`, or give PYTHON=python3.12",
    ),
    (
        r"subprocess-exited-with-error|Failed building|metadata-generation-failed",
        "a package is built from source here, and that failed",
    ),
)


@dataclass
class Failed(Exception):
    """pip ended with an error; `reason` are its own lines, `remedy` is one line of ours."""

    reason: list[str]
    remedy: str
    unreachable: bool = False


@dataclass
class Pip:
    """pip of one virtual environment; everything that it says goes into `log`."""

    python: Path
    log: Path
    terminal: bool = field(default_factory=sys.stdout.isatty)

    def install(self, words: Sequence[str], what: str, count: int | None = None, index: str = "") -> None:
        """Run `pip install`, showing progress under the name `what`; raises Failed.

        `index` replaces the index that pip is configured for.
        """
        command = [*module(self.python, "pip"), "install", "--disable-pip-version-check", "--no-input",
                   "--no-compile", "--progress-bar", "off", *words]  # fmt: skip
        said: list[str] = []
        show = _Progress(what, count, self.terminal)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ pip {' '.join(command[4:])}\n")
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                text=True, errors="replace", env=environment(index),
            )  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                said.append(line.rstrip())
                show.line(line)
        show.end()
        if process.wait() != 0:
            raise _failure(said)

    def versions(self, name: str, index: str, seconds: float) -> tuple[set[str], bool]:
        """The versions of a package that pip finds, and whether the index could be asked at all.

        Looks only: downloads the index's page and nothing else. Gives up after `seconds`.
        """
        # One retry: without one, pip says nothing of a connection that fails. Its limit is for each address
        # of a host, ours is for the whole question.
        command = [*module(self.python, "pip"), "index", "versions",
                   "--disable-pip-version-check", "--no-input",
                   "--retries", "1",
                   "--timeout", str(max(1, int(seconds / 2) - 1)), name]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False,
                stdin=subprocess.DEVNULL, env=environment(index),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return set(), False
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ pip {' '.join(command[4:])}\n{done.stdout}{done.stderr}")
        found = re.search(r"^Available versions: (.*)$", done.stdout, re.MULTILINE)
        return set(found[1].split(", ")) if found else set(), UNREACHABLE.search(done.stderr) is None


def module(python: Path | str, name: str) -> list[str]:
    """The words that run a module of Python's own, and none of the same name in the current folder."""
    return [str(python), "-I", "-m", name]


def environment(index: str = "") -> dict[str, str]:
    """The environment for pip: the user's own settings stay, but for what hides or colours its lines.

    An index's address goes in here and not on the command line: it may hold a password.
    """
    dropped = {
        "PIP_QUIET",
        "PIP_VERBOSE",
        "PIP_REQUIRE_VIRTUALENV",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_USER",
        "PYTHONPATH",
        "PYTHONHOME",
    }
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    own = {"PIP_INDEX_URL": index} if index else {}
    return kept | {"NO_COLOR": "1", "LC_ALL": "C.UTF-8"} | own


class _Progress:
    """Turns pip's lines into one that is rewritten, or, without a terminal, into a few."""

    def __init__(self, what: str, count: int | None, terminal: bool) -> None:
        self.what, self.count, self.terminal = what, count, terminal
        self.seen = 0
        self.shown = time.monotonic()
        self.width = 0

    def line(self, line: str) -> None:
        if line.startswith(("Collecting ", "Requirement already satisfied: ")):
            self.seen += 1
            self._show("", force=False)
        elif line.startswith("Ignoring ") and self.count:
            self.count -= 1
        elif line.startswith("Installing collected packages"):
            self._show("unpacking", force=True)
        elif (big := BIG.search(line)) and _megabytes(big["size"]) >= NOTABLE_MB:
            self._show(f"downloading {big['file']} ({big['size']})", force=True)

    def _show(self, doing: str, *, force: bool) -> None:
        so_far = f"{self.seen} of {self.count}" if self.count else ""
        text = f"  {self.what}: {', '.join(filter(None, (so_far, doing))) or self.seen}"
        if self.terminal:
            text = text[: shutil.get_terminal_size().columns - 1]
            sys.stdout.write("\r" + text.ljust(self.width))
            self.width = len(text)
        elif force or time.monotonic() - self.shown > EVERY_SEC:
            sys.stdout.write(text + "\n")
            self.shown = time.monotonic()
        sys.stdout.flush()

    def end(self) -> None:
        if self.terminal and self.width:
            sys.stdout.write("\n")
            sys.stdout.flush()


def _megabytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * (1000 if unit == "GB" else 1)


def _failure(said: Sequence[str]) -> Failed:
    """Why pip failed: from its first line that says error, with the network's warnings before it."""
    start = next(
        (i for i, line in enumerate(said) if re.match(r"\s*error\b", line, re.IGNORECASE)),
        max(0, len(said) - 8),
    )
    network = [line for line in said[:start] if line.startswith("WARNING") and UNREACHABLE.search(line)]
    reason = [_short(line) for line in [*network[:1], *said[start:]] if line.strip()]
    text = "\n".join(reason)
    remedy = next(
        (remedy for pattern, remedy in REMEDIES if re.search(pattern, text, re.IGNORECASE)),
        "the log has all that pip said",
    )
    return Failed(
        reason[-25:] if len(reason) > 25 else reason, remedy, unreachable=UNREACHABLE.search(text) is not None
    )


def _short(line: str) -> str:
    """Without the dozens of versions that pip names where it found none that fits."""
    line = re.sub(
        r"\(from versions: (?:[^)]*, )?([^,)]+, [^,)]+, [^,)]+)\)", r"(from versions: ..., \1)", line
    )
    return line if len(line) <= LINE_CHARS else line[:LINE_CHARS] + " ..."
