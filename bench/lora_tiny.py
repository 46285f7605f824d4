"""LoRA on qwen2-tiny: protected against raw tokens per second, and how weights arrive.

    python bench/lora_tiny.py                 seconds of each arm in blocks, and an interval (about 8 minutes)
    python bench/lora_tiny.py --duration 16   a shorter look

Two parts:

1. One run of `model=qwen2-tiny order=abba` on provider=local: the program's own estimate, with its interval.
2. Weights: about 120 MB of bf16 base weights sealed and opened into a model, against `from_pretrained` from
   local files in the page cache, alternating.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from glasshouse import config
from glasshouse.sealing.container import fresh_payload_key, open_package, seal_package
from glasshouse.workloads import lora_pod
from glasshouse.workloads.package import prepare

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duration", type=float, default=80.0, help="measured seconds per arm (80)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of part 2 (7)")
    args = parser.parse_args()
    print(f"load average when it began: {os.getloadavg()[0]:.1f}")
    print(json.dumps({"run": whole_run(args.duration)}, indent=2))
    with tempfile.TemporaryDirectory(prefix="bench-lora-") as folder:
        print(json.dumps({"weights": weights(Path(folder), args.rounds)}, indent=2))
    print(f"load average when it ended: {os.getloadavg()[0]:.1f}")


def whole_run(duration: float) -> dict[str, Any]:
    """Run the program once, in a home of its own, and pick tokens per second from its record."""
    with tempfile.TemporaryDirectory(prefix="bench-lora-") as folder:
        command = [
            sys.executable, "-m", "glasshouse", "run", "--json", "--out", f"{folder}/runs",
            "model=qwen2-tiny", "gpu=cpu", "order=abba", "measure=quick", f"duration={duration}",
            "measure.duration_tolerance_pct=50",
        ]  # fmt: skip
        environment = {**os.environ, "GLASSHOUSE_HOME": f"{folder}/home"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=False)
        record = json.loads(done.stdout)["runs"][0]
    figures = record["figures"]
    tokens = 64  # batch 1 of 64 tokens
    return {
        "status": record["status"],
        "exclusion": record["exclusion"],
        "protectedTokensPerSec": _times(figures.get("protectedPerSec"), tokens),
        "rawTokensPerSec": _times(figures.get("rawPerSec"), tokens),
        "overheadPct": figures.get("overheadPct"),
        "overhead": figures.get("overhead"),
        "caveats": record["caveats"],
    }


def _times(rate: float | None, tokens: int) -> float | None:
    return None if rate is None else round(rate * tokens, 1)


def weights(folder: Path, rounds: int) -> dict[str, Any]:
    """Time both ways from files in the page cache to a model whose every weight was read once."""
    values = config.resolved(["model=qwen2-tiny", "model.weights=sealed", f"model.weights_path={folder}"])
    values["model"].update(dtype="bfloat16", architecture={**values["model"]["architecture"], **SHAPE})
    spec = config.validate(values)
    settings = spec.model.model_dump(mode="json")
    shape = lora_pod.shape_of(settings)
    transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(folder)
    payload, key, path = prepare(spec), fresh_payload_key(), folder / "package.sealed"
    with path.open("wb") as out:
        digest = seal_package(out, payload_key=key, files=payload.files, tensors=payload, extra={})

    def sealed() -> Any:
        package = open_package(path, payload_key=key, manifest_hash=digest)
        return lora_pod.sealed_model(settings, package.tensors, torch.bfloat16)

    def plain() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    times: dict[str, list[float]] = {"sealed": [], "from_pretrained": []}
    for number in range(rounds + 1):
        for name, load in (("sealed", sealed), ("from_pretrained", plain)):
            began = time.perf_counter()
            model = load()
            # from_pretrained maps files lazily: reading every weight once makes the two do the same.
            total = sum(float(value.sum()) for value in model.parameters())
            took = time.perf_counter() - began
            assert total == total  # noqa: PLR0124 -- not NaN
            if number:  # the first round imports and fills caches
                times[name].append(took)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "megabytes": round(size / 1e6, 1),
        **{
            name: {"bestSec": round(min(found), 4), "medianSec": round(statistics.median(found), 4)}
            for name, found in times.items()
        },
    }


if __name__ == "__main__":
    main()
