"""`glasshouse pages`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands.kit import Call


def test_a_folder_that_holds_something_is_not_emptied_for_a_site(call: Call, elsewhere: Path) -> None:
    (elsewhere / "thesis").mkdir()
    (elsewhere / "thesis" / "chapter.md").write_text("1")
    code, out, err = call("pages", "--site", "thesis")
    assert (code, out) == (2, "")
    assert "error: not an empty folder (site=thesis): give a new one" in err
    assert (elsewhere / "thesis" / "chapter.md").read_text() == "1"


def test_pages_writes_what_the_site_is_made_of(call: Call, elsewhere: Path) -> None:
    code, out, _ = call("pages", "--out", "pages", "--committed", "--json")
    assert code == 0
    written = {
        str(path.relative_to(elsewhere / "pages"))
        for path in (elsewhere / "pages").rglob("*")
        if path.is_file()
    }
    assert written == set(json.loads(out)["files"])
    assert any(name.startswith("rows/") for name in written)
