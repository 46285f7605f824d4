"""`glasshouse verify`: what it says of what it is given; what it checks is tested in tests/records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.kit import Call


def test_verify_reports_each_check_and_fails_on_what_is_no_bundle(some_run: Path, call: Call) -> None:
    # This folder has a record and no signature: its checks say so, and the exit code does.
    code, out, err = call("verify", str(some_run), "--json")
    assert (code, err) == (1, "")
    document = json.loads(out)
    (found,) = document["runs"]
    assert document["ok"] is False
    assert set(found) == {"path", "ok", "status", "overheadPct", "signer", "checks"}
    assert any(not check["ok"] for check in found["checks"])
    code, out, _ = call("verify", str(some_run))
    assert code == 1
    assert "NOT VERIFIED" in out


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/rows/x/", "not a row of a site"),
        ("https://user:secret@example.org/research/artifacts/x.json", "not a row of a site"),
        ("http://example.org/research/artifacts/x.json", "use https"),
        ("http://[::1/research/artifacts/x.json", "not a row of a site"),
        ("https://xn--a.example/research/artifacts/x.json", "not a row of a site"),
        ("https://example.org:99999999/research/artifacts/x.json", "not a row of a site"),
        ("https://" + "\u0660" * 300 + "/research/artifacts/x.json", "not a row of a site"),
    ],
)
def test_urls_that_are_no_rows_are_refused_before_anything_is_fetched(
    url: str, said: str, call: Call
) -> None:
    code, _, err = call("verify", url)
    assert code == 2
    assert said in err


def test_what_cannot_be_read_keeps_nothing_else_from_being_verified(some_run: Path, call: Call) -> None:
    paths = ["nothing", str(some_run), "no/artifact.json", "http://127.0.0.1:1/research/artifacts/x.json"]
    code, out, err = call("verify", *paths, "--json")
    assert code == 3  # the worst of them: that host does not answer
    document = json.loads(out)
    assert (document["ok"], [item["path"] for item in document["runs"]]) == (False, paths)
    said = [line.removeprefix("error: ") for line in err.splitlines()]
    unread = [document["runs"][index]["checks"] for index in (0, 2, 3)]
    assert unread == [[{"code": "cannot-be-read", "ok": False, "detail": line}] for line in said]
    assert len(document["runs"][1]["checks"]) > 1
    code, out, err = call("verify", *paths[:2])
    assert (code, err) == (2, f"error: {said[0]}\n")
    assert out.startswith(f"{some_run}\n")


def test_a_run_is_found_by_its_id_as_show_finds_it(some_run: Path, call: Call) -> None:
    by_path = json.loads(call("verify", str(some_run), "--json")[1])["runs"][0]["checks"]
    for name in (some_run.name, "20260102", "2026-01-02-local-cpu-mlp-60s-raw-first-abcdef"):
        code, out, err = call("verify", name, "--json")
        assert (code, err) == (1, "")
        (found,) = json.loads(out)["runs"]
        assert (found["path"], found["checks"]) == (name, by_path)
    assert call("verify", some_run.name, "--out", str(some_run.parent), "--json")[0] == 1
    assert call("verify", "2025")[2] == (
        "error: no such run (path=2025): `glasshouse runs` lists them; "
        "or give a run or bundle folder, a row's file, a URL\n"
    )
