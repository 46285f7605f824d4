"""Both ends of a journey to a borrowed machine (glasshouse/publishing/journey.py says what one is).

    python -m tools.journey carry --python 3.12 --budget 9m --out build/kit
    python -m tools.journey pack --home kit/home --runs runs --extra look --out gpu.tar.gz

`carry` runs on the operator's machine, with a network; `pack` on the borrowed one, at any moment.
Run both from the top of the checkout.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from glasshouse.errors import GlasshouseError, UsageError
from glasshouse.paths import Workspace
from glasshouse.publishing.journey import Journey, budget_seconds, open_journey, pack_journey
from glasshouse.records.keys import committed_keyring, public_bytes, publisher_key
from glasshouse.records.ledger import Ledger, log_key

ROOT = Path(__file__).resolve().parents[1]
MAX_WHEELS_BYTES = 60 << 20
# The target has these with its torch, or what they are for (the site) is not done there.
NOT_CARRIED = {"torch", "transformers", "peft", "safetensors", "tokenizers", "numpy"}
NOT_CARRIED |= {"mkdocs", "mkdocs-material", "jinja2"}
# No wheel of it is published, and it is pure Python.
BUILT = "antlr4-python3-runtime"
# pip takes each tag for itself: manylinux_2_28 does not stand for the older ones.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)]
PLATFORMS += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._\-]+)==(?P<version>[^\s;\\]+)(?P<marker>\s*;[^\\]+)?")


def main(argv: Sequence[str] | None = None) -> int:
    """Do one of the two; an error is one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    carry = actions.add_parser("carry", help="make the kit and announce the journey")
    carry.add_argument("--python", required=True, metavar="X.Y", help="the target's Python, such as 3.12")
    carry.add_argument("--budget", required=True, help="time on the target, such as 9m")
    carry.add_argument("--out", required=True, type=Path, help="the kit's folder; must not exist")
    carry.add_argument("--seed", type=int, default=None, help="seed of the schedules; default: drawn")
    carry.add_argument("--platform", action="append", help="wheel platform tags; default: Linux on x86-64")
    carry.add_argument("--no-wheels", action="store_true", help="the target has all packages already")
    pack = actions.add_parser("pack", help="make one archive of what was signed so far")
    pack.add_argument("--home", required=True, type=Path, help="the journey's GLASSHOUSE_HOME")
    pack.add_argument("--runs", action="append", type=Path, default=[], help="a folder of run folders")
    pack.add_argument("--extra", action="append", type=Path, default=[], help="a file or folder to go along")
    pack.add_argument("--out", required=True, type=Path, help="the archive")
    args = parser.parse_args(argv)
    try:
        return _carry(args) if args.action == "carry" else _pack(args)
    except GlasshouseError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        return error.exit_code


def _carry(args: argparse.Namespace) -> int:
    seconds = budget_seconds(args.budget)
    if re.fullmatch(r"3\.(1[1-9]|[2-9]\d)", args.python) is None:
        raise UsageError("not a Python version", field="python", value=args.python, remedy="such as 3.12")
    if args.seed is not None and not 0 <= args.seed < 2**53:
        raise UsageError("not a seed", field="seed", value=args.seed, remedy="give 0 to 2^53-1")
    out: Path = args.out
    if out.exists():
        raise UsageError("the kit's folder is there", field="out", value=out, remedy="give a new name")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        part = Path(folder) / out.name
        part.mkdir(mode=0o700)
        wheels = [] if args.no_wheels else _wheels(part / "wheels", args.python, args.platform or PLATFORMS)
        _done(["git", "archive", "--format=tar", "--output", str(part / "src.tar"), "HEAD"], "src.tar")
        _done(
            [sys.executable, "-m", "glasshouse", "keys", "--make"], "keys", GLASSHOUSE_HOME=str(part / "home")
        )
        # Last, since it cannot be undone: from here on the journey is shown as open until it comes back.
        own = log_key(public_bytes(publisher_key()))
        seed = secrets.randbelow(2**31) if args.seed is None else args.seed
        journey = open_journey(
            part / "home", seed=seed, budget_sec=seconds, ledger=Ledger(), operator_log=own
        )
        (part / "journey.json").write_bytes(journey.as_bytes())
        part.rename(out)
    _tell(out, journey, wheels)
    return 0


def _wheels(folder: Path, python: str, platforms: Sequence[str]) -> list[Path]:
    """Gather what the target lacks, in the versions that this checkout is installed with."""
    folder.mkdir()
    with tempfile.TemporaryDirectory() as place:
        pins = Path(place) / "pins.txt"
        pins.write_text("\n".join(_pins()) + "\n", encoding="utf-8")
        pip = [sys.executable, "-I", "-m", "pip"]
        built = next((pin for pin in _pins() if pin.startswith(f"{BUILT}==")), BUILT)
        _done([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), built], "wheels")
        target = ["--python-version", python, "--implementation", "cp", "--only-binary", ":all:"]
        tags = [word for tag in platforms for word in ("--platform", tag)]
        words = [
            "--dest",
            str(folder),
            "--find-links",
            str(folder),
            "--constraint",
            str(pins),
            *target,
            *tags,
        ]
        _done([*pip, "download", "--quiet", *words, *_roots()], "wheels")
    wheels = sorted(folder.iterdir())
    total = sum(wheel.stat().st_size for wheel in wheels)
    if total > MAX_WHEELS_BYTES:
        raise UsageError(
            "the wheels are too large to travel",
            field="bytes",
            value=total,
            remedy=f"at most {MAX_WHEELS_BYTES}",
        )
    return wheels


def _roots() -> list[str]:
    """What the program needs on the target, as pyproject.toml names it; pip finds what that needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *project.get("optional-dependencies", {}).get("run", [])]
    return [
        item
        for item in named
        if re.split(r"[^A-Za-z0-9._\-]", item, maxsplit=1)[0].lower() not in NOT_CARRIED
    ]


def _pins() -> Iterator[str]:
    """name==version of every package that this checkout is installed with."""
    files = [path for path in (ROOT / "locks/lock.txt", ROOT / "constraints.txt") if path.is_file()]
    if not files:
        raise UsageError("no list of versions", field="file", value="locks/lock.txt", remedy="restore it")
    for line in files[0].read_text(encoding="utf-8").splitlines():
        match = _PIN.match(line)
        if match is not None:
            yield f"{match['name']}=={match['version']}{(match['marker'] or '').rstrip()}"


def _done(command: list[str], what: str, **variables: str) -> None:
    """Run a step; its failure is one line, the last that it said."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise GlasshouseError(
            f"{what} could not be made: {said[-1].strip() if said else 'no reason given'}",
            field="command",
            value=" ".join(command[:4]),
        )


def _tell(out: Path, journey: Journey, wheels: Sequence[Path]) -> None:
    for wheel in sorted(
        (out / "wheels" / item.name for item in wheels), key=lambda item: -item.stat().st_size
    ):
        _say(f"  {wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}")
    size = sum((out / "wheels" / wheel.name).stat().st_size for wheel in wheels)
    _say(
        f"{len(wheels)} wheels, {size / 1e6:.1f} MB; src.tar {(out / 'src.tar').stat().st_size / 1e6:.1f} MB"
    )
    _say(f"journey {journey.id}: {journey.budget_sec} s, seed {journey.seed}")
    _say(f"announced as entry {journey.open_serial} of log {journey.opened_in}")
    _say(f"publisher key of the journey: {journey.commitment}")
    listed = {
        log_key(entry.public)
        for entry in committed_keyring(Workspace.of_source(ROOT).keyring).with_role("publisher")
    }
    if journey.opened_in not in listed:
        _say("note: conf/trust does not list this machine's keys yet: glasshouse keys --trust LABEL")
    if _changed():
        _say("note: src.tar is the last commit; what is changed and not committed does not travel")
    _say(f"the kit is {out}; it holds private keys of the journey alone, which are worthless after it")


def _changed() -> bool:
    words = ["git", "status", "--porcelain", "--untracked-files=no"]
    return bool(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip())


def _pack(args: argparse.Namespace) -> int:
    packed = pack_journey(args.home, args.runs, args.extra, args.out)
    _say(
        f"{args.out}: {packed.size / 1e6:.2f} MB, {len(packed.runs)} runs, {len(packed.extra)} further files"
    )
    for name, why in packed.left_out:
        _say(f"  left out: {name}: {why}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
