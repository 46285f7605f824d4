"""One published row in the place of another: what is entered, shown, verified and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glasshouse.canonical import canonical_json, parse_json
from glasshouse.errors import GlasshouseError, UsageError
from glasshouse.paths import Workspace
from glasshouse.publishing.pages import render
from glasshouse.publishing.publication_files import ARTIFACTS, read_publication
from glasshouse.publishing.verify_artifact import check_artifact

from .conftest import Machine, Machines
from .test_publish import tree

REPORTED = "2026-05-16-runpod-h100-mlp-30m-protected-first"


@pytest.fixture
def rows(machines: Machines) -> tuple[Machine, str, str]:
    """A machine with two published rows; another one has published its own row beside them."""
    one, two = machines
    old, new = one.publish(one.folder, one.run()).rows
    two.publish()
    return one, old, new


def test_both_rows_stay_and_say_which_is_which(root: Path, rows: tuple[Machine, str, str]) -> None:
    one, old, new = rows
    done = one.supersede(old, new, "the  clock was <set>")
    assert set(done.written) == {
        f"site/research/artifacts/{old}.json",
        f"site/research/ledger/{one.key}/leaves.jsonl",
        f"site/research/ledger/{one.key}/checkpoint.txt",
    }
    pages = render(read_publication(Workspace.of_source(root)))
    before, after = pages[f"rows/{old}.md"].decode(), pages[f"rows/{new}.md"].decode()
    assert f'Superseded on 2026-11-21</strong> by <a href="../../rows/{new}/">' in before
    assert f'Supersedes <a href="../../rows/{old}/">' in after
    assert "Supersedes" not in before
    assert "Superseded" not in after
    assert all("the clock was &lt;set&gt;" in page for page in (before, after))
    assert f"by {new}: the clock was &lt;set&gt;" in pages["ledger.md"].decode()
    entry = check_artifact(root / ARTIFACTS / f"{old}.json", one.keyring)
    assert entry.ok, entry
    assert f"superseded by {new}" in {item.detail for item in entry.checks}
    state = tree(root)
    assert one.supersede(old, new, "again").written == one.publish().written == ()
    assert tree(root) == state


def test_a_supersession_edited_in_or_out_is_found(root: Path, rows: tuple[Machine, str, str]) -> None:
    one, old, new = rows
    path = root / ARTIFACTS / f"{old}.json"
    original = path.read_bytes()

    def faults() -> str:
        with pytest.raises(GlasshouseError) as caught:
            read_publication(Workspace.of_source(root))
        (check,) = [item for item in check_artifact(path, one.keyring).checks if not item.ok]
        return f"{caught.value} {check.code} {check.detail}"

    path.write_bytes(canonical_json(parse_json(original) | {"supersededBy": new}))
    assert faults().count("ledger-supersession-differs") == 2
    path.write_bytes(original)
    one.supersede(old, new)
    assert path.read_bytes() != original
    path.write_bytes(original)
    assert faults().count("ledger-supersession-differs") == 2


Change = Callable[[Machine, str, str], object]
REFUSED: list[tuple[str, Change]] = [
    ("no such published row", lambda one, old, new: one.supersede("no-such-row", new)),
    ("no such published row", lambda one, old, new: one.supersede(old, "no-such-row")),
    ("needs a reason", lambda one, old, new: one.supersede(old, new, " ")),
    ("cannot supersede itself", lambda one, old, new: one.supersede(old, old)),
    ("a reported row", lambda one, old, new: one.supersede(REPORTED, new)),
    ("a reported row", lambda one, old, new: one.supersede(old, REPORTED)),
    ("in a circle", lambda one, old, new: (one.supersede(new, old), one.supersede(old, new))),
    ("is retracted", lambda one, old, new: (one.retract(old, "x"), one.supersede(old, new))),
    ("is retracted", lambda one, old, new: (one.retract(new, "x"), one.supersede(old, new))),
]


@pytest.mark.parametrize(("said", "change"), REFUSED)
def test_what_is_refused(said: str, change: Change, rows: tuple[Machine, str, str]) -> None:
    with pytest.raises(UsageError, match=said):
        change(*rows)


def test_the_newest_row_takes_the_place(machines: Machines) -> None:
    one, two = machines
    first, second, third = one.publish(one.folder, one.run(), one.run()).rows
    one.supersede(first, second)
    with pytest.raises(UsageError, match=f"superseded by {second} already"):
        one.supersede(first, third)
    one.supersede(second, third)
    with pytest.raises(UsageError, match=f"superseded by {third} itself"):
        one.supersede(two.publish().rows[0], second, ledger=two.ledger, key=two.factory.publisher)


def test_another_machines_row_is_its_own_to_supersede(
    root: Path, machines: Machines, rows: tuple[Machine, str, str]
) -> None:
    _, old, new = rows
    two = machines[1]
    before = tree(root)
    with pytest.raises(UsageError, match="another machine's log holds the row"):
        two.supersede(old, two.row)
    assert tree(root) == before
    assert two.supersede(two.row, new).rows == (two.row,)
    read_publication(Workspace.of_source(root))
