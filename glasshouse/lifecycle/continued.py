"""`from=RUN`: the settings of the run that goes on from a checkpoint of another one.

They are those of the run that it continues, as its run.json has them, the command of a project included.
What stands on the command line beside `from=` is laid over them. What would make it another job is refused:
another model, another size of a built-in one, another order. The code is that of now: a project's folder, or
a class of the owner's, goes along with the content that it has today.

The run's own overrides are composed again only to find the values of what is typed now: with `provider=ssh`
of then, `provider.port=` is a setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.canonical import canonical_json
from glasshouse.codes import Code
from glasshouse.conf_files import GROUPS
from glasshouse.errors import UsageError
from glasshouse.lifecycle import restore
from glasshouse.lifecycle.checkpoints import stored
from glasshouse.lifecycle.resumed import Told, operators, told
from glasshouse.lifecycle.run_folder import RunFolder, SavedRun
from glasshouse.measurement.schedule import left_of
from glasshouse.spec import Continues, CustomModel, Job, MlpModel, Policy, ProjectModel, RunSpec

KEY = "from"
_NUMBER = re.compile(r"(.+)@([1-9][0-9]{0,8})\Z", re.DOTALL)
_MODEL_MAY_CHANGE = frozenset(Job.model_fields)  # of a built-in model: nothing that its state depends on

LENGTHS = frozenset({"duration", "steps", "epochs"})  # of which one is given

Compose = Callable[[Sequence[str]], dict[str, Any]]  # overrides -> plain values
Validate = Callable[[Mapping[str, Any]], RunSpec]


@dataclass(frozen=True)
class Origin:
    """The run that `from=` names, and which checkpoint of it; None: the newest."""

    folder: Path
    saved: SavedRun
    number: int | None

    @classmethod
    def of(cls, given: str, runs: Path) -> Origin:
        """Find it by its folder, its id or an unambiguous beginning of that. Raises UsageError."""
        match = _NUMBER.match(given)
        number = int(match[2]) if match is not None and not Path(given).is_dir() else None
        name = match[1] if match is not None and number is not None else given
        folder = Path(name)
        if not (folder / "run.json").is_file():
            _name_fault(folder, given, runs)
            folder = _in(runs, name, given)
        saved = RunFolder(folder).saved()
        if not saved.spec.job:
            raise UsageError(
                "only a private job goes on from a checkpoint, and this was none", field=KEY, value=saved.run,
                remedy="a job is order=protected-only payload=private, as model=project always is",
            )  # fmt: skip
        if not RunFolder(folder).bundle.is_dir():
            raise UsageError(
                "this run is not finished: its job may still train", field=KEY, value=saved.run,
                remedy=f"wait for its end, or `glasshouse reap --stop {saved.run}` asks it to end; where "
                "its controller died, `glasshouse reap` fetches what it left",
            )  # fmt: skip
        return cls(folder, saved, number)

    def overrides(self, typed: Sequence[str]) -> list[str]:
        """What makes these settings on one command line: the run's own words that are not said anew, and
        `typed`.
        """
        said = {_key(word) for word in typed}
        anew = LENGTHS if said & LENGTHS else set()
        kept = [word for word in self.saved.overrides if _key(word) not in {*said, *anew, KEY}]
        return [*kept, *typed]

    def continues(self, policy: Policy) -> Continues:
        """The checkpoint that it comes to. Raises UsageError, or RefusedError with its reason code."""
        saved, before = self.saved, self.saved.spec.continues
        if (home := self._left(policy)) is not None:
            return _continues(self.folder, saved, before, home)
        if before is not None and not stored(self.folder):
            raise UsageError(
                "no checkpoint of this run is here", field=KEY, value=saved.run,
                remedy=f"go on from what it went on from: from={before.given}",
            )  # fmt: skip
        good = restore.pick(
            self.folder, saved.run, saved.spec, policy, number=self.number, operators=operators()
        )
        return _continues(self.folder, saved, before, good)

    def _left(self, policy: Policy) -> restore.Left | None:
        """What a project left at its end, unless a checkpoint is asked for; None: nothing is at home."""
        saved = self.saved
        if self.number is not None:
            return None
        try:
            return restore.left(self.folder, saved.run, saved.spec, policy, operators=operators())
        except restore.RefusedError as error:
            remedy = error.remedy or "no checkpoint at home is good"
            if (other := self.newest_good(policy)) is not None:
                remedy = f"the newest good checkpoint at home: from={other.given}"
            raise restore.refuse(error.what, error.code or Code.CHECKPOINT_TORN, remedy) from error

    def newest_good(self, policy: Policy) -> Continues | None:
        """The newest good one at home, also where a later one was countersigned; None: there is none."""
        saved = self.saved
        good = restore.newest_good(self.folder, saved.run, saved.spec, policy, operators=operators())
        return None if good is None else _continues(self.folder, saved, saved.spec.continues, good)


def _continues(folder: Path, saved: SavedRun, before: Continues | None, good: restore.Good) -> Continues:
    said = told(good) if isinstance(saved.spec.model, CustomModel) else None
    own, sofar = _made(saved.spec, good, before, said)
    return Continues(
        runs=(*(() if before is None else before.runs), saved.run),
        leg=good.stored.leg,
        launch=good.stored.launch,
        number=good.number,
        sha256=good.sha256,
        steps=sofar,
        seconds=_seconds(saved.spec, good, before, own, said),
        witnessed=good.witnessed and (before is None or before.witnessed),
        folder=str(folder.resolve()),
    )


def _made(
    spec: RunSpec, good: restore.Good, before: Continues | None, said: Told | None
) -> tuple[int | None, int | None]:
    """Optimizer steps of the checkpoint's own run by then, and of all of the chain; None: not known.

    A session counts on from what it was given; a project's hooks count what their own run made, and so does
    a class of the owner's whose state has no `steps`.
    """
    if before is None:
        return good.steps, good.steps
    if good.steps is None or before.steps is None:
        return None, None
    anew = spec.workload == "project" or (said is not None and not said.counts_on)
    return (good.steps, before.steps + good.steps) if anew else (good.steps - before.steps, good.steps)


def _seconds(
    spec: RunSpec, good: restore.Good, before: Continues | None, own: int | None, said: Told | None
) -> float | None:
    """Seconds that were trained by then: those of the last report of no more units than the checkpoint has,
    so that never fewer are made in all than were asked for. Of a class of the owner's nobody else knows how
    many units a state holds: those that its checkpoint says it had taken when it was written.
    """
    earlier = 0.0 if before is None else before.seconds
    if spec.workload == "project" or earlier is None:
        return None
    if said is not None:
        return earlier + said.seconds
    per_unit = spec.model.batches_per_epoch if isinstance(spec.model, MlpModel) else 1
    most = None if own is None else own / per_unit
    found = [seconds for seconds, units in good.progress if most is None or units <= most]
    return earlier + (found[-1] if found else 0.0)


def _name_fault(folder: Path, given: str, runs: Path) -> None:
    """Refuse a folder that is no run's, and what stands behind the @ of a run where it is no number."""
    if folder.is_dir() and len(folder.parts) > 1:
        raise UsageError(
            "this folder is no run's: it has no run.json", field=KEY, value=given,
            remedy="give a run folder, as they lie in runs/; `glasshouse runs` lists them",
        )  # fmt: skip
    name, at, said = given.rpartition("@")
    if (
        at
        and _NUMBER.match(given) is None
        and ((Path(name) / "run.json").is_file() or [*runs.glob(f"{name}*")])
    ):
        raise UsageError(
            f"a checkpoint's number is 1 or more, and this is {said or 'none'}", field=KEY, value=given,
            remedy=f"from={name}@3 names number 3; from={name} takes the newest state",
        )  # fmt: skip


def _in(runs: Path, name: str, given: str) -> Path:
    found = [
        path
        for path in sorted(runs.glob("2*"))
        if path.name.startswith(name) and (path / "run.json").is_file()
    ]
    exact = [path for path in found if path.name == name]
    if len(exact) == 1 or len(found) == 1:
        return (exact or found)[0]
    what = "several runs begin so" if found else "no such run"
    raise UsageError(
        what,
        field=KEY,
        value=given,
        remedy="give a run id or a run folder, or RUN@N; `glasshouse runs` lists them",
    )


def continued(origin: Origin, typed: Sequence[str], compose: Compose, validate: Validate) -> RunSpec:
    """The settings of the run that goes on. `typed`: what stands beside `from=`. Raises UsageError."""
    saved = origin.saved.spec
    values = saved.model_dump(mode="json") | {"continues": None}
    words = [word for word in typed if _key(word) != KEY]
    if any(_key(word) == "experiment" for word in words):
        raise UsageError(
            "an experiment has settings of its own", field="experiment", value="given",
            remedy="leave it out beside from=",
        )  # fmt: skip
    if words:
        composed = compose(origin.overrides(words))
        keys = {_key(word) for word in words}
        rents = saved.provider.kind in composed["gpu"].get("provider_names", {})
        if "gpu" in keys and "provider" not in keys and not rents:
            _take_provider(values, composed)
        for word in words:
            _lay_over(values, composed, _key(word), saved)
    said = {_key(word) for word in words}
    if asked := said & LENGTHS:
        values |= dict.fromkeys(LENGTHS - asked)
    spec = validate(values)
    _check_same_job(saved, spec)
    spec = spec.model_copy(update={"continues": origin.continues(spec.policy)})
    left_of(spec)
    return spec


def _take_provider(values: dict[str, Any], composed: Mapping[str, Any]) -> None:
    """Where the run was cannot have the GPU that is typed now: whatever a fresh command line comes to."""
    if composed["provider"]["kind"] != values["provider"]["kind"]:
        values["provider"] = composed["provider"]


def _lay_over(values: dict[str, Any], composed: Mapping[str, Any], key: str, saved: RunSpec) -> None:
    """Take one typed setting, or a whole group, out of what it came to."""
    if key.startswith("hydra"):
        return
    if key == "model":
        found = composed["model"]
        if (found["kind"], found["name"]) != (saved.model.kind, saved.model.name):
            raise _another("model", found["name"], saved.model.name)
        return  # its settings are those of the run
    if key in GROUPS:
        values[key] = composed[key]
        return
    *above, last = key.split(".")
    source: Any = composed
    place = values
    for part in above:
        source, place = source.get(part, {}), place.setdefault(part, {})
    if last in source:
        place[last] = source[last]
    else:
        place.pop(last, None)


def _check_same_job(saved: RunSpec, spec: RunSpec) -> None:
    """Refuse what no checkpoint of that run fits to."""
    for field in ("order", "payload", "control"):
        if getattr(spec, field) != getattr(saved, field):
            raise _another(field, getattr(spec, field), getattr(saved, field))
    if isinstance(saved.model, ProjectModel | CustomModel):
        if (spec.model.kind, spec.model.name) != (saved.model.kind, saved.model.name):
            raise _another("model.name", spec.model.name, saved.model.name)
        return
    before, now = (each.model.model_dump(mode="json") for each in (saved, spec))
    for name, value in before.items():
        if name not in _MODEL_MAY_CHANGE and canonical_json(now.get(name)) != canonical_json(value):
            raise _another(f"model.{name}", now.get(name), value)
    if spec.seed != saved.seed:
        raise _another("seed", spec.seed, saved.seed)
    if spec.gpu.count != saved.gpu.count:
        raise _another("gpu.count", spec.gpu.count, saved.gpu.count)


def _another(field: str, value: object, before: object) -> UsageError:
    return UsageError(
        "this would be another job than the one that it goes on from", field=field, value=value,
        remedy=f"leave it out: it is {before}",
    )  # fmt: skip


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition("@")[0]
