"""Serve both fake providers: `python -m glasshouse.providers.fakes [--faults RATE] [-- COMMAND ...]`.

Without a command it prints the environment to export and serves until it is interrupted. With one it runs the
command in that environment and exits with its code, or with 4 when it left a simulated machine behind.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final

from glasshouse.errors import UsageError
from glasshouse.host import need_linux
from glasshouse.providers.fakes.faults import FaultPlan
from glasshouse.providers.fakes.runpod import serve_runpod
from glasshouse.providers.fakes.vastai import serve_vastai

# What a sweep must survive; each is followed by a row, and by zero machines left.
RANDOM_KINDS: Final = (
    "create-5xx", "create-5xx-created", "create-429", "create-capacity", "create-garbage-created", "read-5xx",
    "read-429", "read-drop", "boot-error", "boot-exit", "delete-5xx", "delete-drop", "delete-noop",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, and run a command or wait."""
    parser = argparse.ArgumentParser(
        prog="python -m glasshouse.providers.fakes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--boot-sec", type=float, default=0.5, help="how long a fake machine boots")
    parser.add_argument(
        "--faults", type=float, default=0.0, metavar="RATE", help="probability of random faults"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random faults")
    parser.add_argument("--max-usd", default="1000", help="the GLASSHOUSE_MAX_USD to hand out")
    parser.add_argument("--json", action="store_true", help="print the environment as one JSON object")
    parser.add_argument("command", nargs="*", help="what to run with it, after --")
    args = parser.parse_args(argv)
    try:
        need_linux("a simulated machine")
    except UsageError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        return error.exit_code

    def plan(number: int) -> FaultPlan:
        return FaultPlan(seed=args.seed + number, rate=args.faults, kinds=RANDOM_KINDS)

    with (
        serve_runpod(faults=plan(1), boot_sec=args.boot_sec) as runpod,
        serve_vastai(faults=plan(2), boot_sec=args.boot_sec) as vastai,
    ):
        env = {
            "RUNPOD_API_KEY": runpod.key,
            "VAST_API_KEY": vastai.key,
            "GLASSHOUSE_MAX_USD": args.max_usd,
            "GLASSHOUSE_RUNPOD_URL": runpod.base_url,
            "GLASSHOUSE_VASTAI_URL": vastai.base_url,
        }
        if args.command:
            code = _run(args.command, env)
            states = [server.cloud.snapshot() for server in (runpod, vastai)]
            left, made = (sum(state[key] for state in states) for key in ("active", "created"))
            sys.stderr.write(f"simulated machines: {made} made, {left} left\n")
            return 4 if left else code
        if args.json:
            sys.stdout.write(json.dumps(env) + "\n")
        else:
            lines = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
            sys.stdout.write(
                "# SIMULATED providers. In another shell:\n" + "\n".join(lines) + "\n"
                "# then: python -m glasshouse gpu=a4000 duration=20\n"
            )
        sys.stdout.flush()
        over = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: over.set())
        over.wait()
        return 0


def _run(command: Sequence[str], env: dict[str, str]) -> int:
    """Run the command; an interrupt is its business, and we wait for its clean-up."""
    # A handler, not SIG_IGN: the child would inherit that and never hear an interrupt.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(command, env={**os.environ, **env}, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
