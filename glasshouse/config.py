"""Configuration: Hydra composes conf/, RunSpec decides, and every mistake becomes one line.

No DictConfig leaves this module. Everything raised on purpose is a UsageError that names the
setting by its dotted path, the value given, and what to do about it.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML ships no types
from hydra import __version__ as hydra_version
from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from glasshouse.conf_files import GROUPS
from glasshouse.errors import UsageError
from glasshouse.extras import install_line
from glasshouse.paths import Workspace
from glasshouse.spec import RunSpec
from glasshouse.spec_errors import choose, from_pydantic, show

# What Hydra raises for bad words on the command line. The plain ones are its answers to values that
# its own checks do not foresee (`gpu=3`, `=5`); a warning is one about a search path that is not there.
COMPOSE_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    OSError,
    ValueError,
    TypeError,
    AssertionError,
    UserWarning,
)
BASIC = "basic"
# What order, payload and duration are where nobody says so. What is a user's own is not laid open by default.
_MEASURED: dict[str, str | float | None] = {"order": "abba", "payload": "public", "duration": 20.0}
_PRIVATE: dict[str, str | float | None] = {"order": "protected-only", "payload": "private", "duration": None}
_OWN = ("custom", "project")
LENGTHS = ("duration", "steps", "epochs")  # one of them says how long it trains


def _by_model(setting: str, kind: str) -> str | float | None:
    return (_PRIVATE if kind in _OWN else _MEASURED)[setting]


OmegaConf.register_new_resolver("by_model", _by_model, replace=True)
# All that settings take from the environment: what they come to stands in plan, ledger and page.
ENVIRONMENT = ("GLASSHOUSE_RUNPOD_URL", "GLASSHOUSE_VASTAI_URL")


def _environment(name: str, default: str | None = None) -> str:
    value = os.environ.get(name, default) if name in ENVIRONMENT else None
    if value is None:
        raise ValueError(
            f"of the environment only {' and '.join(ENVIRONMENT)} are read: write the value itself"
        )
    return value


# In place of OmegaConf's own, which reads every variable: keys and tokens too.
OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
# Hydra accepts these and nothing comes of them: run folders are ours, and nothing is logged through it.
NO_EFFECT = ("hydra.run", "hydra.output_subdir", "hydra.verbose", "hydra.job_logging", "hydra.hydra_logging")


def load(overrides: Sequence[str], *, conf: Path | None = None) -> RunSpec:
    """Compose conf/ with `overrides` into one validated RunSpec. conf: None takes the program's own.

    Raises UsageError. Files that the spec names (SSH key, known hosts, a custom workload) must exist.
    """
    typed = _typed(overrides)
    spec = validate(resolved(overrides, conf=conf), typed)
    _check_files(spec)
    if spec.model.kind in _OWN and spec.payload == "public" and "payload" not in typed:
        raise UsageError(
            "this would lay your own workload open on the machine", field="payload", value="public, in conf/",
            remedy="say payload=public yourself, on the command line",
        )  # fmt: skip
    return spec


def command_words(command: Sequence[str]) -> list[str]:
    """The override that says which command a project runs, word for word; none for no command."""
    if not command:
        return []
    quoted = (QuotedString(_literal(word), Quote.single).with_quotes() for word in command)
    return [f"model.command=[{','.join(quoted)}]"]


def _literal(word: str) -> str:
    """Keep OmegaConf from reading an interpolation into a word that is somebody else's."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", word)


def resolved(overrides: Sequence[str], *, conf: Path | None = None) -> dict[str, Any]:
    """Compose conf/ with `overrides` into plain values, every interpolation resolved, not yet validated."""
    with _composing(conf, overrides) as hydra:
        config = _compose(hydra, overrides, RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        return _as_asked(_plain(config), overrides)


def _as_asked(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Settle what conf/ alone cannot, since it does not know what was typed.

    How long it trains is what the command line says, of duration, steps and epochs, in place of what conf/
    says. A job has no warm-up: what it returns made the steps asked for, and no others.
    """
    typed = {_key(word) for word in overrides}
    asked = {name for name in LENGTHS if name in typed and values.get(name) is not None}
    yielding = set(LENGTHS) - typed if asked else set()
    values |= dict.fromkeys(yielding & set(values))
    if values.get("payload") == "private" and isinstance(values.get("measure"), dict):
        values["measure"] = {**values["measure"], "warmup_sec": 0.0}
    return values


def validate(values: Mapping[str, Any], typed: Mapping[str, str] | None = None) -> RunSpec:
    """Turn plain values into a RunSpec; the first of several mistakes is the one named, as `typed` has it."""
    try:
        # JSON, because strict mode takes a list for a tuple there and nowhere else.
        return RunSpec.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise from_pydantic(error, values, typed) from error


def expand(overrides: Sequence[str], *, conf: Path | None = None) -> list[list[str]]:
    """Return the overrides of every cell of a sweep, in order, as Hydra's basic sweeper makes them."""
    with _composing(conf, overrides) as hydra:
        config = _compose(hydra, _of_sweep(overrides), RunMode.MULTIRUN)
        chosen = config.hydra.runtime.choices["hydra/sweeper"]
        if chosen != BASIC:
            raise UsageError(
                "unknown sweeper", field="hydra/sweeper", value=chosen,
                remedy="cells are validated and budgeted beforehand, so only hydra/sweeper=basic will do",
            )  # fmt: skip
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        search = [item for item in config.hydra.overrides.hydra if item.startswith("hydra.searchpath=")]
        parser = OverridesParser.create(config_loader=hydra.config_loader)
        parsed = parser.parse_overrides([*params, *_of_cells(overrides)])
        return [[*search, *cell] for batch in BasicSweeper.split_arguments(parsed, None) for cell in batch]


def wants_sweep(overrides: Sequence[str], *, conf: Path | None = None) -> bool:
    """Whether the configuration itself asks for a sweep (`hydra.mode=MULTIRUN`)."""
    with _composing(conf, overrides) as hydra:
        return bool(_compose(hydra, _of_sweep(overrides), RunMode.MULTIRUN).hydra.mode == RunMode.MULTIRUN)


def launcher(overrides: Sequence[str], *, conf: Path | None = None) -> str:
    """Return the launcher that a sweep is to use: basic, joblib, submitit_slurm, ray, ..."""
    with _composing(conf, overrides) as hydra:
        config = _compose(hydra, _of_sweep(overrides), RunMode.MULTIRUN)
        return str(config.hydra.runtime.choices["hydra/launcher"])


def launch(
    overrides: Sequence[str], job: Callable[[RunSpec, list[str]], int], *, conf: Path | None = None
) -> list[int]:
    """Run a sweep through Hydra's own launcher, each cell in the process that it chooses.

    `job` must be picklable; it gets a cell's spec and overrides and returns its exit code. Compose the
    cells with `expand` and `load` first: here a mistake is no longer one line.
    """
    with _hydra(_folder(conf)) as hydra:
        config = _compose(hydra, _of_sweep(overrides), RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        sweeper = Plugins.instance().instantiate_sweeper(
            config=config, hydra_context=context, task_function=_Job(job)
        )
        batches = sweeper.sweep(arguments=_of_cells(overrides))
        return [int(done.return_value) for batch in batches for done in batch]


@dataclass(frozen=True)
class _Job:
    job: Callable[[RunSpec, list[str]], int]

    def __call__(self, config: DictConfig) -> int:
        words = [str(item) for item in HydraConfig.get().overrides.task]
        return self.job(validate(_as_asked(_plain(config), words)), words)


# --- composing ------------------------------------------------------------------------------


@contextmanager
def _composing(conf: Path | None, overrides: Sequence[str]) -> Iterator[Any]:
    """Yield a Hydra bound to conf/; whatever it raises inside leaves as a UsageError."""
    folder = _folder(conf)
    _check_words(overrides)
    try:
        with warnings.catch_warnings(), _hydra(folder) as hydra:
            warnings.simplefilter("error", UserWarning)
            yield hydra
    except UsageError:
        raise
    except COMPOSE_ERRORS as error:
        raise _from_hydra(error, overrides, folder) from error


@contextmanager
def _hydra(folder: Path) -> Iterator[Hydra]:
    """Start Hydra on conf/ and its own settings; what an installed plugin adds to its search is left out."""
    Plugins.instance()  # brings the readers of files and packages, and launchers
    search = ConfigSearchPathImpl()
    search.append("hydra", "pkg://hydra.conf")
    search.append("main", str(folder))
    search.append("schema", "structured://")
    before = get_gh_backup()
    # Hydra 1.3 warns where no version is named, 1.4 warns where one is.
    older = tuple(map(int, hydra_version.split(".")[:2])) < (1, 4)
    version.setbase("1.3" if older else version._UNSPECIFIED_)
    hydra = Hydra.create_main_hydra2(task_name="glasshouse", config_search_path=search)
    try:
        yield hydra
    finally:
        restore_gh_from_backup(before)


def _folder(conf: Path | None) -> Path:
    folder = (conf or Workspace.find().conf).resolve()
    if not (folder / "config.yaml").is_file():
        raise UsageError(
            "no config.yaml there",
            field="conf",
            value=folder,
            remedy="give --conf DIR, a folder like conf/ of the repository",
        )
    return folder


def _compose(hydra: Any, overrides: Sequence[str], mode: RunMode) -> DictConfig:
    config = hydra.compose_config(
        config_name="config",
        overrides=_quoted(overrides),
        run_mode=mode,
        from_shell=False,
        with_log_configuration=False,
    )
    assert isinstance(config, DictConfig)
    return config


def _plain(config: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _of_sweep(overrides: Sequence[str]) -> list[str]:
    """The words that decide how a sweep is run: Hydra's own, and groups, which may bring a sweep.

    The rest belongs to the cells: with `gpu=h100,pro6000` no provider is chosen yet, so that a setting of a
    provider would be unknown here.
    """
    return [word for word in overrides if _key(word) in GROUPS or _is_hydras(word)]


def _of_cells(overrides: Sequence[str]) -> list[str]:
    return _quoted([word for word in overrides if not _is_hydras(word)])


def _typed(overrides: Sequence[str]) -> dict[str, str]:
    """What stands on the command line, by setting; an interpolation is shown as what it came to."""
    found = {}
    for word in overrides:
        key, _, value = word.lstrip("+~").partition("=")
        if word.startswith("~"):
            found[key] = "deleted"
        elif "${" not in value:
            found[key] = value
    return found


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def _is_hydras(word: str) -> bool:
    return _key(word).startswith(("hydra.", "hydra/")) or _key(word) == "hydra"


def _quoted(overrides: Sequence[str]) -> list[str]:
    """Quote paths that begin with `~/`: shells leave those as they are, and Hydra's grammar has no tilde."""
    return [re.sub(r"=(~/[^'\",\[\]{}()]*)\Z", r"='\1'", word) for word in overrides]


def _check_words(overrides: Sequence[str]) -> None:
    """Refuse what Hydra's grammar accepts and its composition then trips over."""
    for word in overrides:
        key, _, value = word.partition("=")
        if not key.strip("+~ "):
            raise UsageError(
                "override without a name",
                field="argument",
                value=show(word),
                remedy="write NAME=VALUE, see --help",
            )
        if re.sub(r"\W", ".", key.strip("+~")).startswith(NO_EFFECT):
            raise UsageError(
                "setting has no effect here",
                field=key,
                value=show(value),
                remedy="run folders go to --out DIR, and Hydra logs nothing",
            )
        if key in GROUPS and (value.strip("'\" ") in ("", "null") or value.startswith("[")):
            raise UsageError(
                "a group takes one name",
                field=key,
                value=value or "nothing",
                remedy="see --help for the names",
            )
        if key in GROUPS and "/" in value:
            raise UsageError(
                f"unknown {key}", field=key, value=show(value), remedy="see --help for the names"
            )


def _check_files(spec: RunSpec) -> None:
    named: list[tuple[str, str]] = []
    if spec.provider.kind == "ssh":
        named.append(("provider.key", spec.provider.key))
        if spec.provider.known_hosts is not None:
            named.append(("provider.known_hosts", spec.provider.known_hosts))
    if spec.model.kind == "custom":
        named.append(("model.entry", spec.model.entry.rpartition(":")[0]))
        named += [("model.data", path) for path in spec.model.data]
    if spec.model.kind == "project" and not spec.model.command:
        raise UsageError(
            "no command to run", field="model.command", value="nothing",
            remedy="give it behind --: glasshouse model=project ... -- python train.py",
        )  # fmt: skip
    for field, path in named:
        if not Path(path).expanduser().is_file():
            raise UsageError(
                "no such file", field=field, value=path, remedy="give the path of a file that exists"
            )
        if not os.access(Path(path).expanduser(), os.R_OK):
            raise UsageError(
                "file cannot be read", field=field, value=path, remedy="make it readable for you"
            )


# --- one line for each mistake ----------------------------------------------------------------


def _from_hydra(error: BaseException, overrides: Sequence[str], conf: Path) -> UsageError:
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        if not equals:
            project = any(_key(word) == "model" and word.endswith("project") for word in overrides)
            return UsageError(
                "not an override",
                field="argument",
                value=show(error.override),
                remedy="the command goes behind --" if project else "write NAME=VALUE, see --help",
            )
        return UsageError(
            "value cannot be read",
            field=key,
            value=show(value),
            remedy="quote it: NAME='\"the value\"' in a shell",
        )
    if match := re.search(r"Could not (?:override|delete) '([^']+)'", text):
        return _unknown_key(match[1], overrides, conf)
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^=']+)=(.*?)'", text):
        return UsageError(
            "several values for one run",
            field=match[1],
            value=match[2],
            remedy="add -m to run a sweep over them",
        )
    if match := re.search(r"Multiple values for ([^.\s]+)", text):
        group = match[1]
        return UsageError(
            "group chosen twice",
            field=group,
            value=_given(group, overrides),
            remedy=f"write {group}=NAME, without +",
        )
    if isinstance(error, MissingMandatoryValue):
        path = str(error.full_key)
        return UsageError("missing setting", field=path, value="nothing", remedy=f"give {path}=VALUE")
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        path, what = str(cause.full_key), str(cause.msg or cause).splitlines()[0]
        return UsageError(
            "value cannot be resolved", field=path, value=_given(path, overrides), remedy=what.rstrip(".")
        )
    for override in overrides:
        # The plain exceptions do not say which word they mean; find the one that is at fault alone.
        key, _, value = override.partition("=")
        if key in GROUPS or key.startswith("hydra"):
            return UsageError("bad override", field=key, value=show(value), remedy=_first_line(text))
    return UsageError("conf/ does not compose", field="folder", value=conf, remedy=_first_line(text))


def _unknown_option(error: MissingConfigException) -> UsageError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    remedy = choose(name, sorted(error.options or ()))
    if group == "hydra/launcher":
        remedy += f"; more with {install_line('sweep')}"
    return UsageError(f"unknown {group}", field=group, value=show(name), remedy=remedy)


def _unknown_key(key: str, overrides: Sequence[str], conf: Path) -> UsageError:
    if key in ("model.folder", "model.outputs", "model.include", "model.env", "model.max_hours"):
        return UsageError(
            "a setting of a project", field=key, value=_given(key, overrides), remedy="add model=project"
        )
    if key == "model.command":
        return UsageError(
            "only a project runs a command", field="command", value=_given(key, overrides),
            remedy="add model=project model.folder=DIR",
        )  # fmt: skip
    rest = [item for item in overrides if item.lstrip("+~").partition("=")[0] != key]
    try:
        with _hydra(conf) as hydra:
            config = _compose(hydra, [item for item in rest if "," not in item], RunMode.RUN)
        values = OmegaConf.to_container(config, resolve=False)
    except COMPOSE_ERRORS:
        values = {}
    assert isinstance(values, dict)
    if not key.startswith("hydra"):
        values.pop("hydra", None)
    known = [*_paths(values), *GROUPS]
    return UsageError(
        "unknown setting", field=key, value=_given(key, overrides), remedy=choose(key, known, few=True)
    )


def _paths(values: Mapping[Any, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += _paths(value, f"{prefix}{key}.")
    return found


def _given(path: str, overrides: Sequence[str]) -> str:
    for item in reversed(overrides):
        key, equals, value = item.lstrip("+~").partition("=")
        if key == path:
            return show(value) if equals else "deleted"
    return "in conf/"


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["it is not valid"])[0]
