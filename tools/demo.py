"""`make demo`: run the main job on this machine, build the site with its two rows, say where to look.

With --cloud (`make demo-cloud`, inside the fake providers' environment): the README's sweep over rented GPUs,
shorter. Everything is real but the machines; the site labels the rows simulated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"
# The demo names its orders and stays short; conf's own defaults are for measuring.
RUN = ["-m", "--again", "order=raw-first,protected-first", "measure=quick", "duration=6"]
CLOUD = ["-m", "--again", "gpu=h100,pro6000", "order=raw-first", "measure=quick", "duration=2"]


def main() -> int:
    """Run, publish locally, build, verify; the first step that fails ends it with its exit code."""
    cloud = "--cloud" in sys.argv[1:]
    words_of_run, label = (CLOUD, "simulated") if cloud else (RUN, "local")
    before = set((ROOT / "runs").glob("2*")) if (ROOT / "runs").exists() else set()
    began = time.monotonic()
    say(f"$ python -m glasshouse {' '.join(words_of_run)}")
    command = [BIN / "python", "-m", "glasshouse", *words_of_run]
    code, stopped = finished(command)
    if stopped:
        return code or 1
    runs = sorted(set((ROOT / "runs").glob("2*")) - before)
    if not runs:
        return code or 1
    names = [str(run.relative_to(ROOT)) for run in runs]
    for words in (["verify", *names], ["publish", "--local", *names]):
        say(f"$ glasshouse {' '.join(words)}")
        step, stopped = finished([BIN / "python", "-m", "glasshouse", *words])
        if step or stopped:
            return step or 1
    say("$ mkdocs build --strict")
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # a banner about a version that we do not use
    build = [BIN / "mkdocs", "build", "--strict", "--quiet"]
    step, stopped = finished(build, quiet)
    if step or stopped:
        return step or 1
    say(f"\nDone in {time.monotonic() - began:.0f} s.")
    say(f"  the site, with your two rows labelled {label}:  build/site/index.html")
    say("  to browse it:  python3 -m http.server -d build/site, then http://127.0.0.1:8000")
    for name in names:
        say(f"  evidence:  {name}/bundle   one line a check:  .venv/bin/glasshouse verify {name}")
    return code


def finished(command: list[str | Path], env: dict[str, str] | None = None) -> tuple[int, bool]:
    """Run a step to its own end: (exit code, whether Ctrl-C was pressed meanwhile).

    Ctrl-C reaches the step as well, which releases what it holds and records it; run() would kill it.
    """
    stopped = False
    process = subprocess.Popen(command, cwd=ROOT, env=env)
    while True:
        try:
            return process.wait(), stopped
        except KeyboardInterrupt:
            stopped = True


def say(text: str) -> None:
    """Print one line at once, so that it stands before what the next process prints."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
