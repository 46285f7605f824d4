"""What a user reads about the files that go along, before anything is rented."""

from __future__ import annotations

from glasshouse.errors import harmless
from glasshouse.runtime.comes_back import WHOLE
from glasshouse.workloads.data import DATA_FOLDER
from glasshouse.workloads.folder import IGNORE_FILE, Selection

MAX_NAME = 80
FEW = 5
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def lines(selection: Selection) -> list[str]:
    """Return one or two lines, one more for each kind of warning, none with a control character."""
    files, name = selection.files, shown(selection.folder.name)
    how = "what git tracks" if selection.from_git else "no git: all but hidden files"
    how += ", and model.include" if selection.included else ""
    told = [f"sealing {_counted(len(files), selection.total_bytes)} of {name} ({how})"]
    if selection.data_count:
        data = _counted(selection.data_count, selection.data_bytes)
        told[0] += f", {data} of model.data among them, in {DATA_FOLDER}/"
    left = []
    if selection.left_out_count:
        left.append(f"{_counted(selection.left_out_count, selection.left_out_bytes)}{_largest(selection)}")
    if selection.environments:
        left.append(f"environments, unseen: {_listed(selection.environments)}")
    if selection.outputs in selection.closed:
        left.append(f"{shown(selection.outputs)}/ as it is here (model.outputs)")
    if ours := tuple(name for name in selection.closed if name != selection.outputs):
        left.append(f"Glasshouse's own: {_listed(ours)}")
    if left:
        told.append(f"left out: {'; '.join(left)}")
    if selection.secrets:
        told.append(
            f"warning: sealed with the rest, and may hold a secret: {_listed(selection.secrets)}"
            f" (to leave one out: {IGNORE_FILE})"
        )
    return told + [f"note: {shown(note, 400)}" for note in selection.notes]


def comes_back(outputs: str) -> str:
    """Return the line on what of a project comes back; outputs: the folder, relative, or WHOLE."""
    if outputs == WHOLE:
        return "comes back: every file that it makes or changes in its folder (model.outputs=DIR narrows it)"
    return f"comes back: {shown(outputs)}/ (model.outputs), and nothing that it writes elsewhere"


def _largest(selection: Selection) -> str:
    first = selection.largest_left_out[0]
    words = f", the largest {shown(first.name)} {size_words(first.size)}"
    if selection.left_out_count == 1:
        words = f", {shown(first.name)}"
    if first.ignored:
        return f"{words} (by {IGNORE_FILE})"
    return (
        f"{words}: name {'it' if selection.left_out_count == 1 else 'one'} in model.include to take it along"
    )


def _counted(count: int, size: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}, {size_words(size)}"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return ", ".join(shown(name) for name in names[:FEW]) + more


def size_words(count: int) -> str:
    """Return a number of bytes in a unit that suits it: `812 bytes`, `2.3 MB`."""
    for unit, word in _UNITS:
        if count >= unit * 0.9995:  # which would read 1000.0 of the next smaller one
            return f"{count / unit:.1f} {word}"
    return "1 byte" if count == 1 else f"{count} bytes"


def shown(name: str, most: int = MAX_NAME) -> str:
    """Return a name as a terminal may show it: its end where it is long, no control characters."""
    text = harmless(name)
    return text if len(text) <= most else f"...{text[3 - most :]}"
