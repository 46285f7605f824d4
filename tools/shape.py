"""How the code is cut, in numbers: what a change of structure should make smaller.

python tools/shape.py            a table
python tools/shape.py --json

loose signatures   parameters and returns typed `dict[str, Any]` or `Mapping[str, Any]`
string look-ups    subscripts and .get() by a literal key
names of a field   modules in which a field of the records is spelt, in any of its forms
import cycles      groups of modules of which each reaches each other at import
lines              of the package, its tests and its longest modules
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "glasshouse"
FIELDS = ("host_key_source", "gpu_model", "plan_sha256", "final_loss", "zeroize_sec")
LOOSE = re.compile(r"\b(?:dict|Dict|Mapping|MutableMapping)\[str, (?:Any|object)\]")


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """(dotted name, file, tree) of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path, ast.parse(path.read_text(encoding="utf-8"))


def loose_signatures(tree: ast.Module) -> int:
    """Parameters and returns of this module's functions that are typed as loose mappings."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            every += [item for item in (node.args.vararg, node.args.kwarg) if item is not None]
            notes = [*(item.annotation for item in every), node.returns]
            count += sum(1 for note in notes if note is not None and LOOSE.search(ast.unparse(note)))
    return count


def string_lookups(tree: ast.Module) -> int:
    """Subscripts by a literal string, and .get() of one."""
    return sum(
        1
        for node in ast.walk(tree)
        if (isinstance(node, ast.Subscript) and _literal(node.slice) and isinstance(node.ctx, ast.Load))
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and node.args
            and _literal(node.args[0])
        )
    )


def _literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def imports(name: str, path: Path, tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the package that this one imports, also inside functions and for types alone."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                at = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*at[: len(at) - node.level + 1], *([node.module] if node.module else [])])
            found |= {f"{base}.{item.name}" for item in node.names} | {base}
    return (found & known) - {name}


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in order:
            visit(name)
    return sorted(found)


def spelt(field: str) -> re.Pattern[str]:
    """A field's name as Python and as JSON spell it."""
    head, *rest = field.split("_")
    return re.compile(rf"\b(?:{field}|{head}{''.join(part.capitalize() for part in rest)})\b")


def measure() -> dict[str, Any]:
    """All of it."""
    every = list(modules())
    texts = {name: path.read_text(encoding="utf-8") for name, path, _ in every}
    known = set(texts)
    lines = {name: text.count("\n") for name, text in texts.items()}
    tests = sum(path.read_text("utf-8").count("\n") for path in (ROOT / "tests").rglob("*.py"))
    total = sum(lines.values())
    loose = sum(loose_signatures(tree) for _, _, tree in every)
    return {
        "looseSignatures": loose,
        "loosePerThousandLines": round(1000 * loose / total, 1),
        "stringLookups": sum(string_lookups(tree) for _, _, tree in every),
        "fields": {field: sum(1 for text in texts.values() if spelt(field).search(text)) for field in FIELDS},
        "cycles": cycles({name: imports(name, path, tree, known) for name, path, tree in every}),
        "lines": {"package": total, "tests": tests, "modules": len(every)},
        "longest": dict(sorted(lines.items(), key=lambda item: -item[1])[:5]),
    }


def main(argv: list[str]) -> int:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    found = measure()
    if parser.parse_args(argv).json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"loose signatures   {found['looseSignatures']} ({found['loosePerThousandLines']} per 1,000 lines)")
    print(f"string look-ups    {found['stringLookups']}")
    for field, count in found["fields"].items():
        print(f"names of a field   {count:3d} modules spell {field}")
    print(f"import cycles      {len(found['cycles'])}")
    for group in found["cycles"]:
        print(f"                   {' '.join(name.removeprefix('glasshouse.') for name in group)}")
    print("lines              " + ", ".join(f"{name} {count}" for name, count in found["lines"].items()))
    for name, count in found["longest"].items():
        print(f"                   {count} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
