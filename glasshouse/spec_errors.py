"""One line for what pydantic refuses: the setting's dotted path, its value, and what would do.

Knows pydantic and RunSpec, not Hydra, so that a spec read from a file gets the same lines.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from glasshouse.errors import UsageError
from glasshouse.spec import RunSpec

_ABSENT = object()


def from_pydantic(
    error: ValidationError, values: Mapping[str, Any], typed: Mapping[str, str] | None = None
) -> UsageError:
    """Return the UsageError for the first of the mistakes that pydantic found in `values`.

    typed: settings as a person wrote them, by dotted path; shown instead of what they were read as.
    """
    typed = typed or {}
    problems = error.errors(include_url=False)
    first = problems[0]
    loc = list(first["loc"])
    if len(loc) > 1 and loc[0] in ("provider", "model"):
        del loc[1]  # pydantic names the variant of the union there; the file does not
    path = ".".join(str(part) for part in loc)
    kind, message, given = first["type"], first["msg"], typed.get(path, first["input"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if kind == "value_error":
        return _contradiction(message.removeprefix("Value error, ") + more, values, typed)
    if kind == "missing":
        return UsageError(
            "missing setting",
            field=path,
            value=typed.get(path, show(_ABSENT)),
            remedy=f"give {path}=VALUE{more}",
        )
    if kind == "extra_forbidden":
        known = sorted(_model_at(loc[:-1], values).model_fields)
        remedy = choose(str(loc[-1]), known) + more
        return UsageError("unknown setting", field=path, value=show(given), remedy=remedy)
    if kind.startswith("union_tag"):
        path, given = f"{path}.kind", _lookup(first["input"], "kind")
    if kind == "tuple_type":
        return UsageError(
            "it takes a list", field=path, value=show(given), remedy=f"write '{path}=[{show(given)}]'{more}"
        )
    context = first.get("ctx", {})
    expected = context.get("expected") or context.get("expected_tags")
    if expected:
        remedy = f"choose {str(expected).replace(chr(39), '')}"
    elif kind == "string_pattern_mismatch":
        remedy = f"it must be {_model_at(loc[:-1], values).model_fields[str(loc[-1])].description}"
    else:
        remedy = re.sub(r"^\w+ should", "it must", message)
    return UsageError("bad value", field=path, value=show(given), remedy=remedy + more)


def _contradiction(message: str, values: Mapping[str, Any], typed: Mapping[str, str]) -> UsageError:
    """A rule over several settings: all that its sentence names, first the one that a person wrote."""
    words = dict.fromkeys(re.findall(r"[a-z_]+(?:\.[a-z_]+)*", message))
    named = {word: typed.get(word, _lookup(values, word)) for word in words}
    paths = [path for path, value in named.items() if value is not _ABSENT]
    paths.sort(key=lambda path: path not in typed)
    if len(paths) == 1:  # it contradicts nothing
        missing = f"{paths[0]} is missing: "
        what = "missing setting" if message.startswith(missing) else "bad value"
        remedy = message.removeprefix(missing)
        return UsageError(what, field=paths[0], value=show(named[paths[0]]), remedy=remedy)
    others = " and ".join(f"{path}={show(named[path])}" for path in paths[1:])
    return UsageError(
        f"setting contradicts {others}", field=paths[0], value=show(named[paths[0]]), remedy=message
    )


def _lookup(values: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return _ABSENT
        values = values[part]
    return values


def _model_at(loc: Sequence[Any], values: Mapping[str, Any]) -> type[BaseModel]:
    """Return the model at `loc`; in a union, the variant that `kind` chooses."""
    model: type[BaseModel] = RunSpec
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        variants = [item for item in (annotation, *get_args(annotation)) if _is_model(item)]
        values = values[str(part)]
        model = next(item for item in variants if values.get("kind") in (None, *_kinds(item)))
    return model


def _is_model(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def choose(name: str, known: Sequence[str], *, few: bool = False) -> str:
    """Say what `name` was probably meant to be, and, unless `few`, everything it could be."""
    known = [item for item in known if item != name]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # the right word in the wrong place: model.duration
        leaf = name.rpartition(".")[2]
        close = [item for item in known if item.rpartition(".")[2] == leaf][:1]
    if few:
        return f"did you mean {close[0]}? --cfg job lists all" if close else "--cfg job lists all"
    listed = "choose one of " + ", ".join(known)
    return f"did you mean {close[0]}? {listed}" if close else listed


def show(value: Any) -> str:
    """Return a value as it stands in an error line: JSON where it is no string, cut at 80 characters."""
    if value is _ABSENT:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
