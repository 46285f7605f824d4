"""Which files of a user's folder go along to a rented machine (model=project), decided before one is rented.

In a git work tree: what git tracks there, submodules' files too, as the work tree has it now. Elsewhere: all
files but hidden ones. Besides, what matches `model.include`; never what matches `.glasshouseignore`, which is
read at the top of the folder. Wildcards of `model.include` match no hidden name, as in a shell, and enter no
environment, no cache and not the outputs' folder: a pattern that spells such a name takes it. None takes the
folder of a run of ours, which changes while it is sealed. `build` and `dist` are folders like others, for
they may hold code. Folders without files do not go along.
"""

from __future__ import annotations

import difflib
import heapq
import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glasshouse.errors import UsageError
from glasshouse.host import read_regular
from glasshouse.runtime.comes_back import WHOLE
from glasshouse.workloads import data as extra_data
from glasshouse.workloads import git_files
from glasshouse.workloads.chosen import IGNORE_FILE, ChosenFile, choose
from glasshouse.workloads.leaks import may_hold_secret
from glasshouse.workloads.patterns import Glob, IgnoreRules
from glasshouse.workloads.walking import Found, Walk

MAX_IGNORE_BYTES = 1 << 20
MAX_FILES = 100_000
LARGEST_SHOWN = 5
_COMPARED_NAMES = 5000  # that a pattern without a match is held against

__all__ = ["IGNORE_FILE", "ChosenFile", "LeftOut", "Selection", "select"]


@dataclass(frozen=True)
class LeftOut:
    """A file of the folder that stays here: relative POSIX path, bytes, whether .glasshouseignore says so."""

    name: str
    size: int
    ignored: bool


@dataclass(frozen=True)
class Selection:
    """What goes along, and what does not.

    folder: the folder, resolved. from_git: git said which of its files are the project's. included:
    model.include named some. outputs: the relative path where the command leaves its results, or WHOLE.
    files: sorted, with model.data under data/. left_out_count, left_out_bytes: files that stay here, without
    those of environments, caches, `.git` and the outputs' folder; largest_left_out: at most five, the
    largest first.
    environments: folders that were not looked into. closed: others of these, but for caches: the outputs'
    folder, those `apart`, and the folders of runs. secrets: chosen files that may hold a secret. notes: one
    line each, for the user.
    """

    folder: Path
    from_git: bool
    included: bool
    outputs: str
    files: tuple[ChosenFile, ...]
    left_out_count: int
    left_out_bytes: int
    largest_left_out: tuple[LeftOut, ...]
    environments: tuple[str, ...]
    closed: tuple[str, ...]
    secrets: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all that goes along."""
        return sum(file.size for file in self.files)

    @property
    def data_count(self) -> int:
        """How many of the files are model.data's."""
        return sum(1 for file in self.files if file.from_data)

    @property
    def data_bytes(self) -> int:
        """Bytes of model.data's files."""
        return sum(file.size for file in self.files if file.from_data)

    @property
    def names(self) -> frozenset[str]:
        """The chosen files' names."""
        return frozenset(file.name for file in self.files)


def select(
    folder: str | Path,
    *,
    outputs: str = "outputs",
    include: Sequence[str] = (),
    data: Sequence[str | Path] = (),
    apart: Sequence[Path] = (),
) -> Selection:
    """Choose. apart: folders of this program's own, such as runs/; of these only what is tracked goes along.

    Raises UsageError, with the setting at fault, for what cannot go along as it is.
    """
    top = _top(folder)
    place = _outputs(outputs, top)
    globs = [_glob(text) for text in include]
    rules = _rules(top)
    tracked = git_files.tracked(top)
    gone = list[str]()
    picked = dict[str, Found]()
    if tracked is not None:
        empty = [name for name in tracked.empty_submodules if not rules.leaves_out_folder(name)]
        if empty:
            raise UsageError(
                "a submodule was not fetched", field="model.folder", value=empty[0],
                remedy=f"git submodule update --init, or name it in {IGNORE_FILE}",
            )  # fmt: skip
        found, gone = _in_work_tree(top, tracked.names)
        picked = {item.name: item for item in found}
    walk = Walk(
        top,
        closed=frozenset({place, *_inside(top, apart)} - {WHOLE}),
        spelled=lambda name: any(glob.names(name) for glob in globs),
    )
    others = [item for item in walk if item.name not in picked]
    _check_unreadable(walk, globs, rules, from_git=tracked is not None)
    _check_patterns(top, globs, [*picked.values(), *others], rules, walk.kept_closed)
    staying = list[Found]()
    for item in others:
        wanted = any(glob.means(item.name) for glob in globs) or (tracked is None and not _hidden(item.name))
        if wanted and (item.is_file or item.is_link):
            picked[item.name] = item
        else:
            staying.append(item)
    ignored = {name for name in picked if rules.leaves_out(name)}
    staying += [picked[name] for name in ignored]
    files = [choose(item, top, "model.folder") for name, item in picked.items() if name not in ignored]
    _check_amount(files, folder, from_git=tracked is not None)
    further = extra_data.gather(data)
    _check_data(files, further)
    files = sorted([*files, *further], key=lambda file: file.name)
    left = [LeftOut(item.name, item.info.st_size, rules.leaves_out(item.name)) for item in staying]
    return Selection(
        folder=top,
        from_git=tracked is not None,
        included=bool(globs),
        outputs=place,
        files=tuple(files),
        left_out_count=len(left),
        left_out_bytes=sum(item.size for item in left),
        largest_left_out=tuple(heapq.nlargest(LARGEST_SHOWN, left, key=lambda item: item.size)),
        environments=tuple(sorted(walk.environments)),
        closed=tuple(sorted(walk.kept_closed)),
        secrets=tuple(file.name for file in files if may_hold_secret(file)),
        notes=tuple(_notes(files, gone, walk)),
    )


def _top(folder: str | Path) -> Path:
    given = Path(folder).expanduser()
    top = given.resolve()
    if not top.exists():
        remedy = "give the folder of your project"
        try:
            beside = [item.name for item in top.parent.iterdir() if item.is_dir()]
        except OSError:
            beside = []
        if close := difflib.get_close_matches(top.name, beside, n=1):
            remedy = f"did you mean {given.with_name(close[0])}?"
        raise UsageError("no such folder", field="model.folder", value=folder, remedy=remedy)
    if not top.is_dir():
        raise UsageError(
            "not a folder", field="model.folder", value=folder, remedy=f"give the folder: {given.parent}"
        )
    if extra_data.too_much(top):
        raise UsageError(
            "too much would be sealed", field="model.folder", value=folder,
            remedy="give a folder of its own to the project, not the root or the home folder",
        )  # fmt: skip
    if not os.access(top, os.R_OK | os.X_OK):
        raise UsageError(
            "cannot look into the folder", field="model.folder", value=folder, remedy="make it readable"
        )
    return top


def _outputs(outputs: str, top: Path) -> str:
    place = posixpath.normpath(outputs) if outputs else "."
    if posixpath.isabs(outputs) or place.startswith(("..", "~")) or "\0" in outputs or not outputs:
        raise UsageError(
            "not a folder inside the project", field="model.outputs", value=outputs or '""',
            remedy="give a relative path, such as outputs; . is all that it makes or changes in its folder",
        )  # fmt: skip
    if place == WHOLE:
        return place
    lies = top / place
    if lies.exists() and not lies.is_dir():
        raise UsageError(
            "a file has the name of the outputs' folder", field="model.outputs", value=outputs,
            remedy="give another name, or rename the file",
        )  # fmt: skip
    return place


def _glob(text: str) -> Glob:
    remedy = ""
    if text.startswith("!"):
        remedy = f"what is to stay here stands in {IGNORE_FILE}"
    elif text.startswith(("/", "~")) or ".." in text.split("/"):
        remedy = "patterns begin at model.folder; name what lies elsewhere in model.data"
    elif not text.strip("/"):
        remedy = "give a path or a pattern, such as data/**"
    if remedy:
        raise UsageError("not a pattern", field="model.include", value=text or '""', remedy=remedy)
    while text.startswith("./"):
        text = text[2:]
    return Glob.of("**" if text in ("", ".") else text)


def _rules(top: Path) -> IgnoreRules:
    path = top / IGNORE_FILE
    try:
        return IgnoreRules.read(read_regular(path, MAX_IGNORE_BYTES, follow=True).decode("utf-8"))
    except FileNotFoundError:
        return IgnoreRules(())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(
            f"cannot read {IGNORE_FILE}: {why}", field="model.folder", value=path, remedy="mend it"
        ) from error


def _in_work_tree(top: Path, names: Sequence[str]) -> tuple[list[Found], list[str]]:
    """What git tracks and is there, and the names of what is not. No link is followed."""
    there, gone, folders = list[Found](), list[str](), {"": True}

    def real(folder: str) -> bool:
        if folder not in folders:
            folders[folder] = real(posixpath.dirname(folder)) and not (top / folder).is_symlink()
        return folders[folder]

    for name in names:
        path = top / name
        try:
            item = Found(name, path, path.lstat()) if real(posixpath.dirname(name)) else None
        except (FileNotFoundError, NotADirectoryError):
            item = None
        except OSError as error:
            raise UsageError(
                f"cannot look at a file: {error.strerror}", field="model.folder", value=path,
                remedy="make it readable",
            ) from error  # fmt: skip
        if item is not None and (item.is_file or item.is_link):
            there.append(item)
        else:
            gone.append(name)
    return there, gone


def _inside(top: Path, apart: Iterable[Path]) -> Iterable[str]:
    for path in apart:
        real = path.expanduser().resolve()
        if real != top and real.is_relative_to(top):
            yield real.relative_to(top).as_posix()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _check_unreadable(walk: Walk, globs: Sequence[Glob], rules: IgnoreRules, *, from_git: bool) -> None:
    for name in walk.unreadable:
        taken = not from_git and not _hidden(name)
        if (taken or any(glob.names(name) for glob in globs)) and not rules.leaves_out_folder(name):
            raise UsageError(
                "cannot look into a folder", field="model.folder", value=walk.top / name,
                remedy=f"make it readable, or name it in {IGNORE_FILE}",
            )  # fmt: skip


def _check_patterns(
    top: Path, globs: Sequence[Glob], there: Sequence[Found], rules: IgnoreRules, closed: Sequence[str]
) -> None:
    for glob in globs:
        matches = [item.name for item in there if glob.means(item.name)]
        if any(not rules.leaves_out(name) for name in matches):
            continue
        remedy = f"mend the pattern, or {IGNORE_FILE}, which leaves out all that it matches"
        if not matches:
            runs = [name for name in closed if glob.names(name)]
            remedy = _unmatched(top, glob, there)
            if runs:
                remedy = f"a run of Glasshouse does not go along: copy what you need out of {runs[0]}/opened"
        raise UsageError("the pattern matches nothing", field="model.include", value=glob.text, remedy=remedy)


def _unmatched(top: Path, glob: Glob, there: Sequence[Found]) -> str:
    for item in there:
        if item.is_link and glob.names(item.name):
            return (
                f"{item.name} is a link: name what it leads to in model.include, or in model.data if outside"
            )
    names = [item.name for item in there[:_COMPARED_NAMES]]
    folders = {parent for name in names for parent in _parents(name)}
    wanted = glob.text.rstrip("*").strip("/") or glob.text
    if close := difflib.get_close_matches(wanted, [*sorted(folders), *names], n=1):
        meant = close[0]
        return f"did you mean {meant}/**?" if meant in folders else f"did you mean {meant}?"
    return f"patterns begin at {top.name or top}: a file's path there, or such as data/** and **/*.json"


def _parents(name: str) -> Iterable[str]:
    while name := posixpath.dirname(name):
        yield name


def _check_amount(files: Sequence[ChosenFile], folder: str | Path, *, from_git: bool) -> None:
    if not files:
        remedy = "git tracks nothing there: git add what belongs to the project, or name it in model.include"
        if not from_git:
            remedy = f"there is no file in it but hidden ones and what {IGNORE_FILE} leaves out"
        raise UsageError(
            "the folder holds nothing to seal", field="model.folder", value=folder, remedy=remedy
        )
    if len(files) > MAX_FILES:
        raise UsageError(
            f"{len(files):,} files would be sealed, more than {MAX_FILES:,}",
            field="model.folder", value=folder,
            remedy=f"leave some out in {IGNORE_FILE}, or pack them into fewer",
        )  # fmt: skip


def _check_data(files: Sequence[ChosenFile], further: Sequence[ChosenFile]) -> None:
    """Each data/NAME belongs to model.data alone, or to the project."""
    taken = {"/".join(file.name.split("/")[:2]) for file in files}
    for file in further:
        name = "/".join(file.name.split("/")[:2])
        if name in taken or extra_data.DATA_FOLDER in taken:
            raise UsageError(
                "the project has a file or folder of that name", field="model.data", value=name,
                remedy=f"rename one, or name the project's in {IGNORE_FILE}",
            )  # fmt: skip


def _notes(files: Sequence[ChosenFile], gone: Sequence[str], walk: Walk) -> Iterable[str]:
    if gone:
        yield f"git tracks {_few(gone)}, which {'is' if len(gone) == 1 else 'are'} not in the work tree"
    if walk.unreadable:
        yield f"left out unseen, for it cannot be read: {_few(sorted(walk.unreadable))}"
    if pointers := [file.name for file in files if git_files.is_lfs_pointer(file.path, file.size)]:
        yield f"Git LFS has not fetched {_few(pointers)}: git lfs pull"
    names = {file.name for file in files}
    folders = {parent for name in names for parent in _parents(name)}
    loose = [file.name for file in files if file.link is not None and file.leads_to not in names | folders]
    if loose:
        yield f"leads to nothing that goes along: the link {_few(loose)}"


def _few(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
