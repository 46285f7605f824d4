"""Recompute every figure of a run from its evidence bundle, without Glasshouse.

    python recompute.py runs/RUN/bundle

Needs numpy and scipy, nothing of ours. It reads the registered schedule from plan.dsse.json and each
slot's result from legs/, and prints JSON. It checks no signature: `glasshouse verify` does that.
The method is explained on the method page; each step below is one sentence of it.
"""

import base64
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
from scipy import stats

FIGURES = (
    *("overheadPct", "ciLowPct", "ciHighPct", "verdict", "tostLowPct", "tostHighPct", "tostP", "mde80Pct"),
    *("randomisationP", "leaveOneOut", "orderEffectPct", "orderEffectLowPct", "orderEffectHighPct"),
)
STEPS = (
    *("sealSec", "uploadSec", "startSec", "attestSec", "releaseSec"),
    *("unsealSec", "zeroizeSec", "fetchSec"),
)


def main(folder):
    """Print the figures of the bundle in `folder`."""
    bundle = Path(folder)
    envelope = json.loads((bundle / "plan.dsse.json").read_bytes())
    plan = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    margin = plan["spec"]["measure"]["margin_pct"]
    results = {slot["index"]: read_result(bundle, slot) for slot in plan["schedule"]}
    launches = [t for slot in plan["schedule"] if slot["lifecycle"] and (t := read_timings(bundle, slot))]

    # 1. Log rates y = ln(units / seconds) by block; burn-in slots do not count; a pair is one block.
    blocks = {}
    for slot in plan["schedule"]:
        if not slot["burn_in"]:
            blocks.setdefault(slot["block"], []).append((slot, results[slot["index"]]))
    # 2. A block with a disturbed or missing slot is dropped whole.
    kept, dropped = [], {"blocks": [], "protected": 0, "raw": 0, "incomplete": 0}
    for index, members in enumerate(blocks.values()):
        found = [(slot, result) for slot, result in members if result is not None]
        arms = [slot["arm"] for slot, _ in found]
        whole = len(found) == len(members) and arms.count("raw") == arms.count("protected") > 0
        whole = whole and all(usable(result) for _, result in found)
        troubled = [slot["arm"] for slot, result in found if disturbed(result)]
        if whole and not troubled:
            found.sort(key=lambda pair: pair[0]["position"])
            y = np.array([math.log(result["units"] / result["elapsedSec"]) for _, result in found])
            kept.append((y, np.array([slot["arm"] == "protected" for slot, _ in found])))
        else:
            dropped["blocks"].append(index)
            dropped["incomplete"] += not whole
            for arm in troubled:
                dropped[arm] += 1

    figures = {"run": plan["run"], "marginPct": margin, "blocks": len(kept), "dropped": dropped}
    figures.update(overhead(kept, margin))
    figures["fixedCostSec"] = fixed = fixed_cost(launches)
    if figures["overheadPct"] is not None:
        rate = 1 - figures["overheadPct"] / 100  # protected throughput as a share of raw
        figures["overheadAtSec"] = {
            str(length): 100 * (1 - length / (fixed["totalSec"] + length / rate))
            for length in (60, 300, 900, 1800, 3600, 14400, 43200, 86400)
        }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


def overhead(kept, margin):
    """Every figure that rests on the blocks kept: a list of (log rates, which are protected)."""
    figures = dict.fromkeys(FIGURES)
    figures.update(n=len(kept), verdict="inconclusive", leaveOneOut=[])
    if not kept:
        return figures
    # 3. Per block d = mean y(protected) - mean y(raw); overhead = 100 (1 - e^d).
    d = np.array([y[protected].mean() - y[~protected].mean() for y, protected in kept])
    figures["overheadPct"] = percent(d.mean())
    if len(kept[0][0]) >= 4:
        # 4. Order effect: how much slower the second of two neighbouring slots is, whatever its arm.
        order = np.array([(y[1::2] - y[::2]).mean() for y, _ in kept])
        figures["orderEffectPct"] = percent(order.mean())
        if len(order) > 1:
            figures["orderEffectLowPct"], figures["orderEffectHighPct"] = interval(order, 0.05)
    if len(d) < 2:
        return figures
    # 5. Student's t on the d, 95% for the interval and 90% for the equivalence test.
    error, df = d.std(ddof=1) / math.sqrt(len(d)), len(d) - 1
    figures["ciLowPct"], figures["ciHighPct"] = interval(d, 0.05)
    low, high = figures["tostLowPct"], figures["tostHighPct"] = interval(d, 0.10)
    if -margin < low and high < margin:
        figures["verdict"] = "within"
    elif low > margin or high < -margin:
        figures["verdict"] = "exceeds"
    if error > 0:
        bounds = math.log1p(-margin / 100), math.log1p(margin / 100)
        figures["tostP"] = max(
            stats.t.sf((d.mean() - bounds[0]) / error, df), stats.t.sf((bounds[1] - d.mean()) / error, df)
        )
    else:
        figures["tostP"] = 0.0 if -margin < figures["overheadPct"] < margin else 1.0
    # 6. Smallest effect seen with 80% power, and each block left out in turn.
    figures["mde80Pct"] = percent(-(stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * error)
    figures["leaveOneOut"] = [percent(np.delete(d, i).mean()) for i in range(len(d))]
    # 7. Exact p: the share of the shuffles that could have been registered with a sum as extreme.
    signs = np.array([1 if protected[0] else -1 for _, protected in kept])
    contrasts, plus = signs * d, int((signs > 0).sum())
    if math.comb(len(d), plus) <= 200_000:
        sums = [
            abs(2 * contrasts[list(chosen)].sum() - contrasts.sum())
            for chosen in itertools.combinations(range(len(d)), plus)
        ]
        slack = 1e-12 * np.abs(d).sum()
        figures["randomisationP"] = float(np.mean(np.array(sums) >= abs(d.sum()) - slack))
    return figures


def percent(log_ratio):
    """Overhead in percent of a log rate ratio."""
    return float(-100 * math.expm1(log_ratio))


def interval(values, alpha):
    """Student's t interval of the mean, in percent."""
    half = stats.t.ppf(1 - alpha / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return percent(values.mean() + half), percent(values.mean() - half)


def fixed_cost(launches):
    """Median seconds of each step of the lifecycle over the protected launches, and their sum."""
    found = {
        step: float(np.median([t[step] for t in launches if step in t]))
        for step in STEPS
        if any(step in t for t in launches)
    }
    return {**found, "totalSec": sum(found.values())}


def leg_folder(bundle, slot):
    """Where a slot's completed launch is recorded; the second launch of a slot ends in -l2, and so on."""
    name = f"s{slot['index']:03d}-{slot['arm']}"
    for folder in sorted((bundle / "legs").glob(f"{name}*"), reverse=True):
        launch = folder / "launch.json"
        if launch.exists() and json.loads(launch.read_bytes())["status"] == "complete":
            return folder
    return bundle / "legs" / name


def read_result(bundle, slot):
    """A slot's result: a file for raw legs, the `trained` event for protected ones; None: neither."""
    folder = leg_folder(bundle, slot)
    if (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_bytes())
    if (folder / "events.jsonl").exists():
        for line in (folder / "events.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["type"] == "trained":
                return event["body"]["result"]
    return None


def read_timings(bundle, slot):
    """Seconds of each lifecycle step of a slot's completed launch; {} when there was none."""
    path = leg_folder(bundle, slot) / "launch.json"
    launch = json.loads(path.read_bytes()) if path.exists() else {}
    return launch.get("timings", {}) if launch.get("status") == "complete" else {}


def number(value):
    """A finite number, or None: devices answer "N/A" to what they do not know."""
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def usable(result):
    """Whether work and time are positive and finite."""
    return (number(result["units"]) or 0) > 0 and (number(result["elapsedSec"]) or 0) > 0


def disturbed(result):
    """Whether a slot's own telemetry says that something else was going on."""
    samples = result.get("telemetry") or []
    gpus = [gpu for sample in samples for gpu in sample.get("gpu") or []]
    masks = [gpu.get("throttle") for gpu in gpus]
    masks = [int(m, 0) if isinstance(m, str) and m.startswith("0x") else int(number(m) or 0) for m in masks]
    if any(mask & 0xE8 for mask in masks):  # hardware slowdown, thermal, power brake
        return True
    for nth in range(max((len(sample.get("gpu") or []) for sample in samples), default=0)):
        rows = [s["gpu"][nth] for s in samples if len(s.get("gpu") or []) > nth]
        clocks = np.array([c for row in rows if (c := number(row.get("smMhz"))) is not None])
        low = int((clocks < 0.85 * np.median(clocks)).sum()) if len(clocks) else 0
        if low >= 2 and low >= 0.1 * len(clocks):  # clocks fell for part of the slot
            return True
    if any((number(sample.get("otherProcesses")) or 0) > 0 for sample in samples):
        return True
    if not gpus:
        for key, limit in (("othersPct", 50), ("stealPct", 5)):  # the CPU was not ours
            values = [v for sample in samples if (v := number(sample.get(key))) is not None]
            if values and np.mean(values) > limit:
                return True
    edges = [(result.get(edge) or {}).get("eccUncorrected") or [] for edge in ("machineStart", "machineEnd")]
    pairs = [(number(one), number(other)) for one, other in zip(*edges, strict=False)]
    return any(None not in pair and pair[1] > pair[0] for pair in pairs)


if __name__ == "__main__":
    main(sys.argv[1])
