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
class Launch:
    """What a launcher was told: the words from the script on, whether that is a module, and the rest."""

    words: tuple[str, ...]
    module: bool
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
    **_options("ignored", True, "--rdzv-backend --rdzv-endpoint --rdzv-id --rdzv-conf"),
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


# What torchrun puts into the environment of the only process of a group.
_ALONE: Final = {
    **dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK"), "0"),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"), "1"),
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def torchrun(words: Sequence[str], gpus: int) -> Launch:
    """Read what follows `torchrun`."""
    launch = _read("torchrun", _TORCHRUN, words, gpus, default="1")
    return replace(launch, environment={**_ALONE, **launch.environment}) if gpus == 1 else launch


def accelerate(words: Sequence[str], gpus: int) -> Launch:
    """Read what follows `accelerate launch`: without a number, its script runs on every GPU."""
    return _read("accelerate launch", _ACCELERATE, words, gpus, default=str(gpus))


def _read(
    launcher: str, table: Mapping[str, Option], words: Sequence[str], gpus: int, default: str
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
    _check_processes(launcher, table, processes, gpus)
    warnings = (f"without effect here: {', '.join(told)} of {launcher}",) if told else ()
    return Launch(tuple(ahead), module, environment, warnings)


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
    else:
        return {}
    raise UsageError("bad value in the command", field=FIELD, value=f"{name}={value}", remedy=remedy)


def _check_processes(launcher: str, table: Mapping[str, Option], value: str, gpus: int) -> None:
    if value in ("gpu", "auto") and launcher == "torchrun":
        return
    if value != str(gpus):
        name = next(name for name, option in table.items() if option.effect == "processes").replace("-", "_")
        name = "--" + name.strip("_")
        raise UsageError(
            f"{launcher} is to start one process for each GPU, and not {value or 'none'}",
            field="gpu.count", value=gpus, remedy=f"give {name}={gpus}",
        )  # fmt: skip
