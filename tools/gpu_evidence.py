"""What a budget of minutes holds on this machine, in an order in which each step stands alone.

    1. look      driver, NVML, CUDA free and confined, one tensor sealed, unsealed and wiped on the device
    2. smoke     one raw-first pair; it also tells how long a launch takes here
    3. blocks    one ABBA row whose number of blocks and seconds follow from that; registered beforehand
    4. models    pairs of qwen2.5-0.5b (LoRA), then of 7B with random weights, as time remains

Nothing is started that cannot be finished, what was left out is said, and whatever happens one archive lies
there at the end. Called by gpu_evidence.sh, which prepares the environment; standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESERVE_SEC = 10.0  # for verifying and packing
AROUND_RUN_SEC = 12.0  # looking, sealing, releasing, judging: once a run
PAIR_SEC = 2.0
# On a borrowed H100 31 launches took 10.4 s beside their work in the mean, 12.8 at worst; a pair had told
# 9.2, and a row in blocks ended two slots short. On another 37 took 12.3, 16.9 at worst; a pair told 11.4.
# What is planned must end.
SLACK = 1.3
LEAST_BLOCKS, MOST_BLOCKS = 10, 20  # eight must remain
LEAST_SLOT_SEC, LONG_SLOT_SEC = 1.0, 15.0  # from there on more blocks tell more than longer slots
DISCARD_SEC = 0.3
INTERRUPT_SEC = 40.0  # how long a run may take to record what it was when it is ended
TRIED = "torch 2.11 and 2.13 with transformers 5.17 and 5.23"


@dataclass
class Journey:
    """One stay on a machine: its clock, its folders, and what became of each step."""

    began: float
    budget: float
    place: Path
    settings: list[str]
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the reserve begins."""
        return self.began + self.budget - RESERVE_SEC - time.time()

    def say(self, text: str) -> None:
        """Tell what happens, with the seconds since the start."""
        print(f"[{time.time() - self.began:5.0f} s, {max(0.0, self.left):4.0f} left] {text}", flush=True)

    def note(self, step: str, state: str, **found: Any) -> None:
        """Keep what became of a step: done, failed, left-out."""
        self.log.append({"step": step, "state": state, "atSec": round(time.time() - self.began, 1), **found})
        (self.place / "journey-log.json").write_text(json.dumps(self.log, indent=1))

    def run(self, step: str, words: list[str]) -> Path | None:
        """One `glasshouse` run, ended in time whatever it does; its folder, or None where none was made."""
        before = set((self.place / "runs").glob("*/"))
        command = [sys.executable, "-m", "glasshouse", "--again", *words, *self.settings]
        command += ["--out", str(self.place / "runs")]
        self.say(f"{step}: {' '.join(command[2:])}")
        with (self.place / f"{step}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            try:
                code = process.wait(timeout=max(1.0, self.left))
            except subprocess.TimeoutExpired:
                self.say(f"{step}: its time is up; it is ended and recorded as what it is")
                process.send_signal(signal.SIGINT)
                try:
                    code = process.wait(timeout=INTERRUPT_SEC)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
        made = sorted(set((self.place / "runs").glob("*/")) - before)
        folder = made[-1] if made else None
        record = read(folder / "bundle" / "record.json") if folder else None
        if record is None:
            self.note(step, "failed", exitCode=code, run=folder.name if folder else None)
            self.say(f"{step}: exit {code} and no record; the end of its log:")
            print(tail(self.place / f"{step}.log"), flush=True)
            return None
        figures = record["figures"] or {}
        overhead = figures.get("overhead") or {}
        self.note(
            step, "done" if record["status"] == "verified" else "failed", exitCode=code, row=record["id"],
            status=record["status"], exclusion=(record["exclusion"] or {}).get("codes"),
            caveats=record["caveats"], overheadPct=figures.get("overheadPct"),
            ciPct=[overhead.get("ciLowPct"), overhead.get("ciHighPct")],
            fixedCostSec=figures.get("fixedCostSec"),
        )  # fmt: skip
        said = {key: value for key, value in self.log[-1].items() if key not in ("step", "atSec")}
        self.say(f"{step}: {json.dumps(said)}")
        return folder


def read(path: Path) -> Any:
    """A JSON file, or None where it is not there or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a file."""
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])


def launch_sec(folder: Path) -> dict[str, float]:
    """Seconds a launch of each arm took beside its warm-up and measured stretch, from a pair's bundle."""
    found = {}
    for path in (folder / "bundle" / "legs").glob("*/launch.json"):
        launch = read(path)
        result = read(path.parent / "result.json") or trained(path.parent / "events.jsonl")
        measured = result["elapsedSec"] + result["warmupSec"]
        found[launch["arm"]] = max(0.5, launch["endedAt"] - launch["startedAt"] - measured)
    return found


def trained(path: Path) -> dict[str, Any]:
    """The result that a protected leg's events hold."""
    for line in path.read_text("utf-8").splitlines():
        event = json.loads(line)
        if event["type"] == "trained":
            return dict(event["body"]["result"])
    raise ValueError("no result in the events")


def design(left: float, launch: dict[str, float], asked: int | None = None) -> tuple[int, float] | None:
    """(blocks, measured seconds a slot) that fit into `left` seconds; None where ten blocks do not.

    Ten blocks with slots as long as time allows; from LONG_SLOT_SEC on the time goes into more blocks.
    `asked` fixes their number: with eight, the fewest for an interval, one disturbed block takes it away.
    """
    mean = sum(launch.values()) / len(launch) * SLACK + DISCARD_SEC
    best = None
    for blocks in range(LEAST_BLOCKS, MOST_BLOCKS + 1) if asked is None else (asked,):
        slots = 4 * blocks + 1
        slot = (left - AROUND_RUN_SEC) / slots - mean
        if slot >= (LEAST_SLOT_SEC if best is None else LONG_SLOT_SEC):
            best = (blocks, min(slot, 60.0))
    return best


def gpu_name(look: dict[str, Any]) -> str:
    """The name under conf/gpu whose driver name is the machine's, else auto."""
    rows = (look.get("driver") or {}).get("gpus") or []
    for path in sorted((ROOT / "conf/gpu").glob("*.yaml")):
        if rows and f"driver: {rows[0]['name']}\n" in path.read_text("utf-8"):
            return path.stem
    return "auto"


def seconds(text: str) -> float:
    """`9m`, `540s` or `540` as seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m") else (text, "s")
    try:
        value = float(number) * (60.0 if unit == "m" else 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a length of time: {text} (9m, 540s)") from None
    if not 30.0 <= value <= 12 * 3600:
        raise argparse.ArgumentTypeError(f"between 30s and 720m: {text}")
    return value


def versions() -> str:
    """Check what the machine brings; one line."""
    from importlib import metadata

    said = []
    for name, least in (("torch", (2, 11)), ("transformers", (5, 17)), ("peft", (0, 18))):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name == "torch":
                line = "error: this interpreter has no torch (PYTHON): name one that has it, PYTHON=/path"
                print(line, file=sys.stderr)
                sys.exit(2)
            continue
        number = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
        said.append(f"{name} {version}")
        if number < least:
            print(f"warning: {name} {version} is older than what was tried ({TRIED})", flush=True)
    return ", ".join(said)


def main(argv: list[str]) -> int:
    """Measure, and pack whatever there is."""
    parser = argparse.ArgumentParser(prog="tools/gpu_evidence.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--budget", type=seconds, required=True, metavar="9m", help="all of it, packing included"
    )
    parser.add_argument("--kit", type=Path, metavar="DIR", help="what tools/gpu_carry.sh made")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-evidence.tar.gz"), metavar="FILE", help="the archive"
    )
    parser.add_argument("--model", default="mlp-large", help="of the pair and the row in blocks (mlp-large)")
    parser.add_argument("--gpu", help="its name in conf/gpu (found by the driver's name), or cpu")
    known = (
        "seconds a launch takes beside its work, known from an earlier stay: all time goes into the blocks"
    )
    parser.add_argument("--launch", type=float, metavar="SEC", help=known)
    parser.add_argument("--blocks", type=int, choices=range(8, 21), metavar="N", help="so many (10 or more)")
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    brought = versions()
    journey = Journey(args.began, args.budget, args.place.resolve(), [])
    (journey.place / "runs").mkdir(parents=True, exist_ok=True)
    home = args.kit / "home" if args.kit else journey.place / "home"
    os.environ["GLASSHOUSE_HOME"] = str(home.resolve())
    os.environ["PYTHONUNBUFFERED"] = "1"
    if not args.kit:  # keys of its own: whoever's user this is keeps theirs out of a borrowed machine
        subprocess.run([sys.executable, "-m", "glasshouse", "keys", "--make"], cwd=ROOT, check=False)
    plan = read(args.kit / "journey.json") if args.kit else None
    if plan is not None:
        journey.settings += [f"seed={int(plan['seed'])}"]
        if (behind := plan["openedAt"] - time.time()) > 0:
            journey.say(
                f"warning: this clock is {behind:.0f} s behind the kit's, so rows come out registered-late"
            )
        # publishing/logs.py: GETTING_THERE_SEC
        if (spare := plan["openedAt"] + plan["budgetSec"] + 600 - time.time()) < args.budget:
            journey.say(
                f"warning: {max(spare, 0):.0f} s are left of the kit's time and {args.budget:.0f} s were "
                "asked for, so what is planned last comes out registered-late"
            )
    journey.say(f"journey {plan['journey'] if plan else 'without a kit'}: {brought}")
    try:
        measure(journey, args)
    except BaseException as error:  # whatever ended it, what there is comes home
        journey.note("measure", "failed", error=f"{type(error).__name__}: {error}"[:500])
        journey.say(f"ended: {type(error).__name__}: {error}")
    return pack(journey, args, home)


def measure(journey: Journey, args: argparse.Namespace) -> None:
    """Steps 1 to 4."""
    if args.launch is not None:
        gpu = args.gpu or gpu_name({"driver": ask("driver", journey.left)})
        blocks_of(journey, args, gpu, {"both": args.launch})
        return
    # 1. Look.
    answer = subprocess.run(
        [sys.executable, "tools/gpu_look.py"], cwd=ROOT, capture_output=True, text=True, timeout=journey.left,
        check=False,
    )  # fmt: skip
    (journey.place / "look.json").write_text(answer.stdout)
    look = read(journey.place / "look.json") or {}
    steps = {name: found.get("ok") for name, found in look.items() if isinstance(found, dict)}
    journey.note("look", "done", steps=steps)
    journey.say(f"look: {json.dumps(steps)}")
    for name, found in look.items():
        if isinstance(found, dict) and not found.get("ok"):
            journey.say(f"look: {name}: {found.get('error')}")
    gpu = args.gpu or gpu_name(look)
    on_gpu = gpu != "cpu" and bool((look.get("driver") or {}).get("gpus"))
    if on_gpu and not steps.get("confined"):
        journey.note("smoke", "left-out", why="CUDA does not open in a confined process")
        journey.say("a protected leg cannot use this GPU: nothing is measured")
        return
    common = ["provider=local", f"gpu={gpu}", "measure=quick"]

    # 2. Smoke: one pair.
    words = [*common, f"model={args.model}", "order=raw-first", f"duration={PAIR_SEC:g}"]
    folder = journey.run("smoke", words)
    if folder is None or journey.log[-1]["status"] != "verified":
        journey.say("the pair is no verified row: nothing more is measured")
        return
    launch = launch_sec(folder)
    journey.say(
        "a launch takes, beside its work: "
        + ", ".join(f"{arm} {value:.2f} s" for arm, value in sorted(launch.items()))
    )

    # 3. Blocks.
    blocks_of(journey, args, gpu, launch)

    # 4. Models that people fine-tune, one pair each.
    for model, need in (("qwen2.5-0.5b", 75.0), ("qwen2.5-7b", 200.0)):
        if not on_gpu or journey.left < need:
            why = f"{need:.0f} s needed, {journey.left:.0f} remain" if on_gpu else "no GPU"
            journey.note(model, "left-out", why=why)
            journey.say(f"{model}: left out: {why}")
            continue
        journey.run(model, [*common, f"model={model}", "order=protected-first", "duration=10"])


def ask(step: str, timeout: float) -> Any:
    """One step of gpu_look.py; {} where it fails."""
    done = subprocess.run(
        [sys.executable, "tools/gpu_look.py", step],
        cwd=ROOT,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}


def blocks_of(journey: Journey, args: argparse.Namespace, gpu: str, launch: dict[str, float]) -> None:
    """The row in blocks, registered before its first slot, if they fit."""
    chosen = design(journey.left, launch, args.blocks)
    if chosen is None:
        least = args.blocks or LEAST_BLOCKS
        mean = sum(launch.values()) / len(launch) * SLACK + DISCARD_SEC + LEAST_SLOT_SEC
        need = (4 * least + 1) * mean + AROUND_RUN_SEC
        journey.note("blocks", "left-out", why=f"{least} blocks need {need:.0f} s, {journey.left:.0f} remain")
        journey.say(f"blocks: left out: {least} blocks need {need:.0f} s")
        return
    blocks, slot = chosen
    words = ["provider=local", f"gpu={gpu}", "measure=quick", f"model={args.model}", "order=abba"]
    words += [f"measure.blocks={blocks}", f"measure.discard_sec={DISCARD_SEC:g}"]
    journey.run("blocks", [*words, f"duration={round(2 * blocks * slot, 1):g}"])


def pack(journey: Journey, args: argparse.Namespace, home: Path) -> int:
    """Verify what there is and pack it; the exit code is 0 where the row in blocks, or the pair, verified."""
    code = 1
    bundles = sorted((journey.place / "runs").glob("*/bundle"))
    if bundles:
        command = [sys.executable, "-m", "glasshouse", "verify", *map(str, bundles)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        (journey.place / "verify.log").write_text(done.stdout + done.stderr)
        journey.say(f"verify: exit {done.returncode}, {len(bundles)} bundles")
        code = done.returncode
    if not args.kit:  # no ledger announced it: there is no log that `publish` could take
        base = str(args.out.resolve()).removesuffix(".tar.gz")
        made = shutil.make_archive(base, "gztar", journey.place, "runs")
        journey.say(f"archive: {made}: to look at and to verify; publish takes only what a kit brings home")
        return code
    command = [sys.executable, "-m", "tools.journey", "pack", "--home", str(home)]
    command += ["--runs", str(journey.place / "runs"), "--out", str(args.out.resolve())]
    for path in sorted([*journey.place.glob("*.log"), *journey.place.glob("*.json")]):
        command += ["--extra", str(path)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode != 0:  # what was measured is not lost for that
        shutil.make_archive(
            str(args.out.resolve()).removesuffix(".tar.gz") + "-unpacked", "gztar", journey.place / "runs"
        )
    journey.say(f"archive: {args.out}")
    return code or done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
