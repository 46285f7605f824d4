"""What can be known of a user's workload without running it: it compiles, and the class is whole.

Their code runs on the pod only, never here. So this reads the source's syntax tree; what it cannot see
(a base class, a decorator) it leaves to the check that the harness makes on the pod.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from glasshouse.errors import UsageError
from glasshouse.runtime.session import SESSION_PARTS
from glasshouse.spec import CustomModel, RunSpec

_METHODS = tuple(part for part in SESSION_PARTS if part not in ("unit", "steps_per_unit", "info"))
HOW_TO = "see site/custom-workload.md"


def check_source(model: CustomModel, source: bytes) -> None:
    """Raise UsageError for what would fail on the pod: no such name, not callable, a part missing."""
    path, _, name = model.entry.rpartition(":")
    try:
        tree = ast.parse(source, path)
        compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise UsageError(
            f"the workload does not compile: {f'line {line}' if line else 'it'}",
            field="model.entry", value=path, remedy="mend it",
        ) from error  # fmt: skip
    found = _binding(tree, name)
    if found is None:
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        raise UsageError(
            f"the file defines no {name}", field="model.entry", value=model.entry,
            remedy=f"its classes are {', '.join(classes)}" if classes else f"define it; {HOW_TO}",
        )  # fmt: skip
    if isinstance(found, ast.Constant | ast.Dict | ast.List | ast.Tuple | ast.Set):
        raise UsageError(
            f"{name} is not callable", field="model.entry", value=model.entry,
            remedy="name a class or a function that is called with (params, files, device)",
        )  # fmt: skip
    missing = _missing(found) if isinstance(found, ast.ClassDef) else []
    if missing:
        raise UsageError(
            f"the workload lacks {', '.join(missing)}", field="model.entry", value=model.entry,
            remedy=f"add it to the class; {HOW_TO}",
        )  # fmt: skip


def check_steps(spec: RunSpec, source: bytes) -> None:
    """Raise UsageError where steps would end inside a unit, of a class that can do whole ones alone.

    Of what cannot be seen here, such as units of a base class, the leg says it (steps-not-whole-units).
    """
    assert isinstance(spec.model, CustomModel)
    total, name = spec.total_steps, spec.model.entry.rpartition(":")[2]
    found = _binding(ast.parse(source), name)
    if total is None or not isinstance(found, ast.ClassDef) or _opaque(found) or "run_steps" in _has(found):
        return
    unit, slots = _unit_steps(found), 2 * spec.measure.blocks if spec.order == "abba" else 1
    whole = unit * slots
    if unit < 1 or not total % whole:
        return
    below = total - total % whole
    nearest = " or ".join(f"steps={steps}" for steps in (below, below + whole) if steps)
    each = f", in each of {slots} slots of an arm" if slots > 1 else ""
    raise UsageError(
        f"they end inside a unit of {unit} steps{each}", field="steps", value=total,
        remedy=f"give {nearest}, or a method run_steps(n); {HOW_TO}",
    )  # fmt: skip


def _unit_steps(node: ast.ClassDef) -> int:
    """The steps_per_unit that stands in the class as a number; 0 for none."""
    found = 0
    for part in node.body:
        targets = part.targets if isinstance(part, ast.Assign) else []
        value = part.value if isinstance(part, ast.Assign | ast.AnnAssign) else None
        if isinstance(part, ast.AnnAssign):
            targets = [part.target]
        for target in targets:
            names: Sequence[ast.expr] = [target]
            values: Sequence[ast.expr | None] = [value]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                names, values = target.elts, value.elts
            for one, given in zip(names, values, strict=False):
                if isinstance(one, ast.Name) and one.id == "steps_per_unit":
                    steps = given.value if isinstance(given, ast.Constant) else None
                    found = steps if type(steps) is int else 0
    return found


def _binding(tree: ast.Module, name: str) -> ast.AST | None:
    """What the module binds `name` to, as far as its top level shows; the module itself where it cannot."""
    found: ast.AST | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            return tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name == name:
                found = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any((alias.asname or alias.name) == name for alias in node.names):
                found = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                found = node.value
        elif any(
            isinstance(part, ast.ClassDef | ast.FunctionDef) and part.name == name for part in ast.walk(node)
        ):
            found = tree  # bound under an if or a try: the pod will tell
    return found


def _missing(node: ast.ClassDef) -> list[str]:
    """Session methods the class does not define; none for one that inherits or is decorated."""
    if _opaque(node):
        return []
    has = _has(node)
    if "__getattr__" in has:
        return []
    return [f"{method}()" for method in _METHODS if method not in has]


def _opaque(node: ast.ClassDef) -> bool:
    """Whether a class has parts that do not stand in it: it inherits or is decorated."""
    return bool(node.decorator_list or node.keywords or any(_name(base) != "object" for base in node.bases))


def _has(node: ast.ClassDef) -> set[str]:
    """Every name that a class defines, or sets on itself."""
    has: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef):
            has.add(part.name)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            has.add(part.attr)
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            has.add(part.id)
    return has


def _name(base: ast.expr) -> str:
    return base.id if isinstance(base, ast.Name) else ""
