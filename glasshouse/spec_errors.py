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


def from_pydantic(error: ValidationError, values: Mapping[str, Any]) -> UsageError:
    """Return the UsageError for the first of the mistakes that pydantic found in `values`."""
    problems = error.errors(include_url=False)
    first = problems[0]
    loc = list(first["loc"])
    if len(loc) > 1 and loc[0] in ("provider", "model"):
        del loc[1]  # pydantic names the variant of the union there; the file does not
    path = ".".join(str(part) for part in loc)
    kind, message, given = first["type"], first["msg"], show(first["input"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if kind == "value_error":
        # A rule over several settings: name the first one that its sentence names.
        message = message.removeprefix("Value error, ")
        path = next(
            (
                word
                for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", message)
                if _lookup(values, word) is not _ABSENT
            ),
            "config",
        )
        return UsageError(
            "settings contradict each other",
            field=path,
            value=show(_lookup(values, path)),
            remedy=message + more,
        )
    if kind == "missing":
        return UsageError("missing setting", field=path, value="???", remedy=f"give {path}=VALUE{more}")
    if kind == "extra_forbidden":
        known = _known_fields(loc[:-1], values)
        return UsageError(
            "unknown setting", field=path, value=given, remedy=choose(str(loc[-1]), known) + more
        )
    if kind.startswith("union_tag"):
        path, given = f"{path}.kind", show(_lookup(first["input"], "kind"))
    context = first.get("ctx", {})
    expected = context.get("expected") or context.get("expected_tags")
    if expected:
        return UsageError(
            "bad value", field=path, value=given, remedy=f"choose {str(expected).replace(chr(39), '')}{more}"
        )
    return UsageError(
        "bad value", field=path, value=given, remedy=re.sub(r"^\w+ should", "it must", message) + more
    )


def _lookup(values: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return _ABSENT
        values = values[part]
    return values


def _known_fields(loc: Sequence[Any], values: Mapping[str, Any]) -> list[str]:
    """Return the field names of the model at `loc`; in a union, of the variant that `kind` chooses."""
    model: type[BaseModel] = RunSpec
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        variants = [item for item in (annotation, *get_args(annotation)) if _is_model(item)]
        values = values[str(part)]
        model = next(item for item in variants if values.get("kind") in (None, *_kinds(item)))
    return sorted(model.model_fields)


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
