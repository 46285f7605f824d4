"""The options of launchers, read as far as to find the script: the ranks are made by us, on one machine.

What would change what the script computes and cannot be handed on is refused by name; what only says how
processes find each other has no meaning here and is passed over. As of torch 2.14 and accelerate 1.15.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from glasshouse.errors import UsageError
from glasshouse.runtime.ranks import MAX_RANKS

FIELD: Final = "command"


@dataclass(frozen=True)
class Option:
    """One option of a launcher. takes: it is followed by a value, or has one behind `=`.

    effect: "ignored" has no meaning here; "told" is passed over with a warning; "refused" ends it, and
    `remedy` says what to do. Others have a name that says how they are checked.
    """

    takes: bool
    effect: str
    remedy: str = ""


@dataclass(frozen=True)
class Gpus:
    """What is known of the machine's GPUs beforehand. count: gpu.count. named: a type was asked for, so there
    are that many; otherwise nobody knows yet, and a launcher's number is taken where no count was given.
    """

    count: int
    named: bool


@dataclass(frozen=True)
class Launch:
    """What a launcher was told: the words from the script on, whether that is a module, and the rest."""

    words: tuple[str, ...]
    module: bool
    processes: int
    environment: Mapping[str, str]
    warnings: tuple[str, ...]


def _options(effect: str, takes: bool, names: str, remedy: str = "") -> dict[str, Option]:
    return dict.fromkeys(names.split(), Option(takes, effect, remedy))


_SCRIPT_ALONE = "give a Python file or -m MODULE"
_TORCHRUN: Final = {
    **_options("processes", True, "--nproc-per-node"),
    **_options("one", True, "--nnodes"),
    **_options("zero", True, "--node-rank"),
    **_options("ignored", False, "--standalone"),
    **_options("told", False, "--virtual-local-rank"),
    **_options("run", True, "--rdzv-id"),
    **_options("ignored", True, "--rdzv-backend --rdzv-endpoint --rdzv-conf"),
    **_options("ignored", True, "--master-addr --master-port"),
    **_options("ignored", True, "--local-addr --monitor-interval --start-method --role --numa-binding"),
    **_options("ignored", True, "--shutdown-timeout --signals-to-handle"),
    **_options("restarts", True, "--max-restarts"),
    **_options("told", True, "--log-dir -r --redirects -t --tee --local-ranks-filter --event-log-handler"),
    **_options("told", True, "--duplicate-stdout-filters --duplicate-stderr-filters --logs-specs"),
    **_options("module", False, "-m --module"),
    **_options("refused", False, "--no-python --run-path", _SCRIPT_ALONE),
}
_IN_SCRIPT = "set it where the script makes its Accelerator"
_ACCELERATE: Final = {
    **_options("processes", True, "--num-processes"),
    **_options("one", True, "--num-machines"),
    **_options("zero", True, "--machine-rank"),
    **_options("ignored", False, "-q --quiet --multi-gpu --same-network --enable-cpu-affinity"),
    **_options("ignored", True, "--main-process-ip --main-process-port --rdzv-backend --rdzv-conf"),
    **_options("ignored", True, "--monitor-interval --role --main-training-function"),
    **_options("restarts", True, "--max-restarts"),
    **_options("told", True, "--log-dir -t --tee"),
    **_options("module", False, "-m --module"),
    **_options("precision", True, "--mixed-precision"),
    **_options("threads", True, "--num-cpu-threads-per-process"),
    **_options("refused", False, "--no-python", _SCRIPT_ALONE),
    **_options("refused", True, "--config-file", "give what it says as options: --mixed_precision=bf16"),
    **_options("refused", True, "--gpu-ids", "leave it out: all GPUs of the machine are used"),
    **_options("refused", False, "--cpu --tpu --debug", "leave it out"),
    **_options("refused", False, "--use-deepspeed --use-fsdp --use-parallelism-config", _IN_SCRIPT),
    **_options("refused", False, "--use-megatron-lm --downcast-bf16", _IN_SCRIPT),
    **_options("refused", False, "--dynamo-use-fullgraph --dynamo-use-dynamic", _IN_SCRIPT),
    **_options("refused", True, "--dynamo-backend --dynamo-mode --deepspeed-config-file", _IN_SCRIPT),
    **_options("refused", True, "--gradient-accumulation-steps --gradient-clipping", _IN_SCRIPT),
    **_options("refused", True, "--zero-stage --fsdp-version", _IN_SCRIPT),
}
_PRECISIONS: Final = ("no", "fp16", "bf16")  # fp8 needs settings of its own

# What torchrun puts into the environment of every process of a group on one machine, and what of the only one
# (torch/distributed/elastic/agent/server/local_elastic_agent.py: _start_workers; of several the pod adds who
# each is and where they meet: runtime/ranks.py). No agent holds a store here, so rank 0 opens it; an error
# file, which an agent would print, there is none.
_GROUP: Final = {
    **dict.fromkeys(("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"), "0"),
    "GROUP_WORLD_SIZE": "1",
    "ROLE_NAME": "default",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "False",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "MASTER_ADDR": "127.0.0.1",
}
_ALONE: Final = {**dict.fromkeys(("RANK", "LOCAL_RANK", "ROLE_RANK"), "0"), "MASTER_PORT": "29500"}
# What accelerate adds for its processes when it is told nothing else (accelerate/utils/launch.py:
# prepare_multi_gpu_env, prepare_simple_launcher_cmd_env).
_ACCELERATED: Final = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    **dict.fromkeys(
        (
            "ACCELERATE_DYNAMO_USE_FULLGRAPH",
            "ACCELERATE_DYNAMO_USE_DYNAMIC",
            "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
        ),
        "False",
    ),
}


def torchrun(words: Sequence[str], gpus: Gpus) -> Launch:
    """Read what follows `torchrun`."""
    launch = _read("torchrun", _TORCHRUN, words, gpus, default="1")
    return replace(launch, environment={**_group(launch.processes), **launch.environment})


def accelerate(words: Sequence[str], gpus: Gpus) -> Launch:
    """Read what follows `accelerate launch`: without a number, its script runs on every GPU."""
    launch = _read("accelerate launch", _ACCELERATE, words, gpus, default=str(gpus.count))
    # The launcher of accelerate starts one process by itself, and several by torchrun.
    group = _group(launch.processes) if launch.processes > 1 else {}
    return replace(launch, environment={**group, **_ACCELERATED, **launch.environment})


def _group(processes: int) -> dict[str, str]:
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), str(processes))
    return {**_GROUP, **sizes, **(_ALONE if processes == 1 else {})}


def _read(
    launcher: str, table: Mapping[str, Option], words: Sequence[str], gpus: Gpus, default: str
) -> Launch:
    ahead, module, processes, told = list(words), False, default, list[str]()
    environment: dict[str, str] = {}
    while ahead and ahead[0].startswith("-"):
        word = ahead.pop(0)
        if word == "--":
            break
        name, option, value = _option(launcher, table, word)
        if option.effect == "refused":
            raise UsageError(
                f"{name} of {launcher} cannot be used here", field=FIELD, value=word, remedy=option.remedy
            )
        if option.takes and value is None:
            if not ahead:
                raise UsageError(
                    f"{name} has no value", field=FIELD, value=word, remedy=f"give one: {name}=..."
                )
            value = ahead.pop(0)
        if option.effect == "module":
            module = True
            break
        if option.effect == "processes":
            processes = value or ""
        elif option.effect == "told" or (option.effect == "restarts" and value != "0"):
            told.append(name)
        else:
            environment |= _checked(option.effect, name, value or "")
    if not ahead:
        raise UsageError(
            f"{launcher} is given no script", field=FIELD, value=launcher, remedy=f"{_SCRIPT_ALONE} behind it"
        )
    count = _processes(launcher, table, processes, gpus)
    warnings = [f"without effect here: {', '.join(told)} of {launcher}"] if told else []
    if not processes.isdigit() and not gpus.named:
        warnings.append(f"as many processes as {processes} says: that is gpu.count here, {gpus.count}")
    return Launch(tuple(ahead), module, count, environment, tuple(warnings))


def _option(launcher: str, table: Mapping[str, Option], word: str) -> tuple[str, Option, str | None]:
    """Return an option's name as it was written, what it is, and the value that stands in the same word."""
    written, equals, value = word.partition("=")
    name = f"--{written[2:].replace('_', '-')}" if written.startswith("--") else written
    option = table.get(name)
    if option is None and not word.startswith("--"):  # -t3, -r 3
        written, value, equals = word[:2], word[2:], word[2:]
        option = table.get(written)
    if option is not None and not (equals and not option.takes):
        return written, option, value if equals else None
    close = difflib.get_close_matches(name, table, n=1, cutoff=0.7)
    remedy = f"did you mean {close[0]}?" if close and option is None else "leave it out"
    raise UsageError(
        f"{launcher} has no such option that is known here", field=FIELD, value=word, remedy=remedy
    )


def _checked(effect: str, name: str, value: str) -> dict[str, str]:
    """Return the variables by which the launcher would hand a value on; most have none."""
    if (effect == "one" and value not in ("1", "1:1")) or (effect == "zero" and value != "0"):
        remedy = "leave it out: a run is on one machine"
    elif effect == "precision":
        if value.lower() in _PRECISIONS:
            return {"ACCELERATE_MIXED_PRECISION": value.lower()}
        remedy = f"choose {', '.join(_PRECISIONS)}"
    elif effect == "threads":
        if re.fullmatch("[1-9][0-9]{0,2}", value):
            return {"OMP_NUM_THREADS": value}
        remedy = "give a number"
    elif effect == "run":
        return {"TORCHELASTIC_RUN_ID": value}
    else:
        return {}
    raise UsageError("bad value in the command", field=FIELD, value=f"{name}={value}", remedy=remedy)


def _processes(launcher: str, table: Mapping[str, Option], value: str, gpus: Gpus) -> int:
    """How many processes are started: one for each GPU, where there are GPUs of a type that was asked for."""
    of_machine = ("gpu", "auto") if gpus.named else ("gpu", "auto", "cpu")
    if value == str(gpus.count) or (value in of_machine and launcher == "torchrun"):
        return gpus.count
    possible = re.fullmatch("[1-9][0-9]?", value) is not None and int(value) <= MAX_RANKS
    if possible and gpus.count == 1 and not gpus.named:
        return int(value)
    name = next(name for name, option in table.items() if option.effect == "processes").replace("-", "_")
    name = "--" + name.strip("_")
    if gpus.count == 1 and not gpus.named:
        raise UsageError(
            f"not a number of processes that {launcher} can start here", field=FIELD, value=f"{name}={value}",
            remedy=f"give one from 1 to {MAX_RANKS}",
        )  # fmt: skip
    raise UsageError(
        f"{launcher} is to start one process for each GPU, and not {value or 'none'}",
        field="gpu.count", value=gpus.count,
        remedy=f"give {name}={gpus.count}" + (f", or gpu.count={value}" if possible else ""),
    )  # fmt: skip
