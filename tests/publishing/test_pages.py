from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from glasshouse.paths import Workspace
from glasshouse.publishing import charts, labels
from glasshouse.publishing.artifact import Artifact, Chain, artifact_bytes, artifact_sha256, parse_artifact
from glasshouse.publishing.csp import inline_hashes, policy, with_policy
from glasshouse.publishing.drawing import Lane, y_axis
from glasshouse.publishing.from_bundle import artifact_from_verified
from glasshouse.publishing.pages import framed_tables, render
from glasshouse.publishing.publication_files import Publication, read_publication
from glasshouse.publishing.reanalysis import pools
from glasshouse.publishing.tamper_report import TamperReport
from glasshouse.records.verify import VerifiedRow

ROOT = Path(__file__).parents[2]


@functools.cache
def committed() -> Publication:
    """The committed publication: reading it verifies every bundle."""
    return read_publication(Workspace.of_source(ROOT), overlay=False)


def publication_of(rows: Iterable[Artifact], **changes: object) -> Publication:
    base = committed()
    values = {
        "artifacts": tuple(rows), "local": frozenset(), "bundles": {}, "remarks": base.remarks,
        "templates": base.templates, "tamper": None,
    } | changes  # fmt: skip
    return Publication(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pages(
    reported: tuple[Artifact, ...], signed: Artifact, abba: tuple[Path, VerifiedRow]
) -> dict[str, bytes]:
    return render(publication_of((*reported, signed, artifact_from_verified(abba[1]))))


def test_equal_publications_give_equal_bytes(reported: tuple[Artifact, ...]) -> None:
    publication = publication_of(reported)
    assert render(publication) == render(publication)


def test_page_ids_are_row_ids(pages: dict[str, bytes], reported: tuple[Artifact, ...]) -> None:
    made = {path.removeprefix("rows/").removesuffix(".md") for path in pages if path.startswith("rows/")}
    assert {row.id for row in reported} < made
    assert len(made) == len(reported) + 2


def test_wherever_a_result_is_shown_it_says_that_it_is_no_hardware_tee(pages: dict[str, bytes]) -> None:
    shows = [path for path in pages if path.endswith(".md")]
    assert len(shows) > 30
    without = [path for path in shows if "Not a hardware TEE" not in pages[path].decode()]
    assert without == ["exclusions.md"]  # reasons, no figure
    written = [path for path in (ROOT / "site").glob("*.md") if "%" in path.read_text("utf-8")]
    assert not [path.name for path in written if "ot a hardware TEE" not in path.read_text("utf-8")]


def test_row_page_shows_status_hash_checks_caveats_and_both_commands(
    pages: dict[str, bytes], signed: Artifact
) -> None:
    page = pages[f"rows/{signed.id}.md"].decode()
    assert artifact_sha256(signed) in page
    for check in signed.checks:
        assert f"<code>{check.code}</code>" in page
    for code in signed.caveats:
        assert f"caveats/#{code}" in page
    assert f"glasshouse verify site/research/artifacts/{signed.id}.json" in page
    assert signed.command is not None
    assert signed.command in page
    assert "No interval." in page


def test_a_row_with_an_interval_shows_it(pages: dict[str, bytes], abba: tuple[Path, VerifiedRow]) -> None:
    row = artifact_from_verified(abba[1])
    assert row.overhead is not None
    page = pages[f"rows/{row.id}.md"].decode()
    assert f"95% interval {labels.interval(row.overhead.ci_low_pct, row.overhead.ci_high_pct)}" in page
    assert "What a whole run pays" in page


def test_without_a_gpu_headline_of_our_own_the_landing_page_says_so(pages: dict[str, bytes]) -> None:
    page = pages["index.md"].decode()
    assert "None of our own yet." in page
    # The first door is one's own project; what it costs comes behind it.
    first, second = page.index("glasshouse train"), page.index('href="./project/"')
    assert first < second < page.index('id="headline"')
    assert [page.index(value) for value in ("+18.05%", "+14.63%", "+2.58%")]


def test_a_control_is_named_as_one_and_is_no_overhead_by_length(
    reported: tuple[Artifact, ...], abba: tuple[Path, VerifiedRow]
) -> None:
    row = artifact_from_verified(abba[1])
    control = row.model_copy(update={"id": f"{row.id}-aa", "control": "aa"})
    assert labels.title(control).startswith(f"{labels.model(row)}, A/A control on ")
    page = render(publication_of((*reported, row, control)))["results.md"].decode()
    assert page.count(f">{labels.name(control)}</a>") == 1
    drawn = charts.by_length((*reported, row, control))
    assert drawn is not None
    assert drawn == charts.by_length((*reported, row))


def test_results_table_holds_every_row_without_script(pages: dict[str, bytes]) -> None:
    page = pages["results.md"].decode()
    assert len(re.findall(r"<tr data-tier=", page)) == len(
        [path for path in pages if path.startswith("rows/")]
    )


def test_ids_in_a_page_are_unique(pages: dict[str, bytes]) -> None:
    for path, content in pages.items():
        if path.endswith(".md"):
            ids = re.findall(r'\sid="([^"]+)"', content.decode())
            assert len(ids) == len(set(ids)), path


def test_nothing_loads_from_elsewhere_and_nothing_is_styled_inline(pages: dict[str, bytes]) -> None:
    for path, content in pages.items():
        text = content.decode()
        if path.endswith(".md"):
            assert not re.findall(r'(?:src|href)="(?:https?:)?//', text), path
            markup = re.sub(r"<code>.*?</code>", "", text, flags=re.DOTALL)
            assert not re.findall(r"\sstyle=|\son\w+=", markup), path


def test_text_from_a_row_cannot_become_markup(reported: tuple[Artifact, ...]) -> None:
    row = next(item for item in reported if item.exclusion is not None)
    assert row.exclusion is not None
    evil = "<script>alert(1)</script> & *emphasis*"
    exclusion = row.exclusion.model_copy(update={"observed": evil})
    others = tuple(item for item in reported if item.id != row.id)
    made = render(publication_of((*others, row.model_copy(update={"exclusion": exclusion}))))
    for path in ("exclusions.md", f"rows/{row.id}.md", "downloads.md"):
        assert "<script>alert" not in made[path].decode()
    assert "&lt;script&gt;alert" in made["exclusions.md"].decode()


def test_downloads_agree_with_the_artifacts(pages: dict[str, bytes], reported: tuple[Artifact, ...]) -> None:
    rows = json.loads(pages["downloads/rows.json"])
    table = list(csv.DictReader(io.StringIO(pages["downloads/rows.csv"].decode())))
    graph = json.loads(pages["downloads/rows.jsonld"])
    feed = ET.fromstring(pages["feed.xml"])
    entries = feed.findall("{http://www.w3.org/2005/Atom}entry")
    assert len(rows) == len(table) == len(graph["hasPart"]) == len(entries) == len(reported) + 2
    by_id = {row["id"]: row for row in rows}
    for line in table:
        overhead = by_id[line["id"]]["overheadPct"]
        assert line["overheadPct"] == ("" if overhead is None else str(overhead))
    for row in reported:
        assert next(line for line in table if line["id"] == row.id)["sha256"] == artifact_sha256(row)
    assert graph["distribution"][0]["contentUrl"] == "downloads/rows.json"
    assert b"cff-version: 1.2.0" in pages["CITATION.cff"]


def test_charts_carry_title_description_and_table(pages: dict[str, bytes]) -> None:
    page = pages["research/history-reanalysis.md"].decode()
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) >= 5
    for drawing in drawings:
        root = ET.fromstring(drawing)
        titles = [child.tag for child in root][:2]
        assert titles == ["title", "desc"]
        assert root.get("role") == "img"
    assert page.count("The numbers of this chart") == page.count("<figure")


def test_dots_sit_where_their_values_are(reported: tuple[Artifact, ...]) -> None:
    figure = charts.overhead_dots(reported, title="t", desc="d")
    assert figure is not None
    for drawing in (figure.wide, figure.narrow):
        assert drawing is not None
        marks = [mark for mark in drawing.marks if mark.css.startswith("m-reported")]
        assert len(marks) == 22
        zero = next(mark.x for mark in drawing.marks if mark.css == "c-zero")
        negative = sum(row.overhead_pct is not None and row.overhead_pct < 0 for row in reported)
        assert sum(mark.x < zero for mark in marks) == negative
        assert all(0 <= mark.x <= drawing.width and 0 <= mark.y <= drawing.height for mark in drawing.marks)


def test_order_effect_pairs_rows_that_differ_in_order_only(reported: tuple[Artifact, ...]) -> None:
    pairs = charts.order_pairs(reported)
    assert round(pairs[0].gap, 2) == -40.13  # H100, 60 s: -29.67 raw first, 10.46 protected first
    assert {(pair.raw_first.gpu, pair.raw_first.model == "mlp") for pair in pairs} == {
        ("h100", True),
        ("a4000", True),
        ("a4000", False),
    }


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-29.67, 18.05), (0.0, 0.0), (6.88, 6.97), (0, 1e6)])
def test_ticks_cover_the_range_at_round_steps(low: float, high: float) -> None:
    from glasshouse.publishing.drawing import ticks

    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 10
    steps = {round(b - a, 9) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1


@pytest.mark.parametrize("power", range(-6, 7))
@pytest.mark.parametrize(
    ("low", "high"), [(-1.3, 2.2), (0.0, 9.99), (-5.14, -0.5), (6.88, 6.97), (-0.49, 0.51)]
)
@pytest.mark.parametrize("unit", ["%", "\N{NO-BREAK SPACE}s"])
def test_an_axis_reads_as_the_values_it_stands_at(low: float, high: float, power: int, unit: str) -> None:
    points = tuple(("dot", "m-signed", x * 10**power) for x in (low, high))
    figure = charts.labelled_lanes(
        "n", "t", "d", [Lane("row", "", points)], table=((), ()), legend=(), unit=unit
    )
    assert figure.narrow is not None
    for drawing in (figure.wide, figure.narrow):
        axis = [mark.text for mark in drawing.marks if mark.css == "t-axis"]
        assert len(axis) == len(set(axis)) >= 2
        read = [
            float(text.removesuffix(unit).replace("\N{MINUS SIGN}", "-").replace(",", "")) for text in axis
        ]
        assert "-0" not in {f"{value:g}" for value in read}
        steps = [b - a for a, b in itertools.pairwise(read)]
        assert max(steps) - min(steps) < 1e-6 * max(steps)
        # Where a label says that it stands, there the marks' own scale puts it.
        grid = [mark.x for mark in drawing.marks if mark.css in ("c-grid", "c-zero")]
        dots = [mark.x for mark in drawing.marks if mark.kind == "dot"]
        per_unit = (grid[-1] - grid[0]) / (read[-1] - read[0])
        for x, (_, _, value) in zip(dots, points, strict=True):
            assert x == pytest.approx(grid[0] + (value - read[0]) * per_unit, abs=0.05)


def test_a_vertical_axis_tells_half_a_percent_from_none() -> None:
    marks = y_axis((-0.5, 0.0, 0.5), lambda value: value, 0, 1, percent=True)
    texts = [mark.text for mark in marks if mark.kind == "text"]
    assert texts == ["\N{MINUS SIGN}0.5%", "0.0%", "+0.5%"]


def test_each_order_has_a_mark_of_its_own_and_controls_are_no_results(
    reported: tuple[Artifact, ...], abba: tuple[Path, VerifiedRow]
) -> None:
    row = artifact_from_verified(abba[1])
    figure = charts.overhead_dots((*reported, row), title="t", desc="d")
    assert figure is not None
    keys = [css.split()[0] for css, text in figure.legend if not text.startswith("hollow")]
    assert len(keys) == len(set(keys))
    control = row.model_copy(update={"control": "aa", "control_outcome": "inconclusive"})
    assert charts.overhead_dots((control,), title="t", desc="d") is None


def test_of_an_inconclusive_row_only_the_band_is_extrapolated(abba: tuple[Path, VerifiedRow]) -> None:
    row = artifact_from_verified(abba[1])
    assert row.overhead is not None
    for verdict, drawn in (("inconclusive", 0), ("exceeds", 1)):
        values = {"overhead_pct": 3.0, "fixed_cost_sec": {"seal": 6.0}}
        overhead = row.overhead.model_copy(update={"ci_low_pct": 1.0, "ci_high_pct": 5.0, "verdict": verdict})
        figure = charts.cost_by_length(row.model_copy(update={**values, "overhead": overhead}))
        assert figure is not None
        kinds = [mark.css for mark in figure.wide.marks if mark.kind == "path"]
        assert (kinds.count("c-band"), kinds.count("c-protected")) == (1, drawn)
        # By hand, for a minute in the clear: 1 - 60/(6 + 60/0.99) and 1 - 60/(6 + 60/0.95).
        assert figure.body[0][2] == "+9.92% to +13.24%"


def test_no_two_rows_share_a_title() -> None:
    rows = committed().artifacts
    said = labels.titles(rows)
    assert len(set(said.values())) == len(rows) == len(said)
    assert sum("20 blocks" in text for text in said.values()) == 1
    twice = [rows[0], rows[0].model_copy(update={"id": "another"})]
    assert len(set(labels.titles(twice).values())) == 2


def test_what_has_no_interval_or_no_verdict_is_not_the_largest_thing_on_its_page(
    pages: dict[str, bytes],
) -> None:
    for row in committed().artifacts:
        page = pages.get(f"rows/{row.id}.md", b"").decode()
        big = re.findall(r'<p class="gh-big([^"]*)">([^<]*)</p>', page)
        if (
            page
            and (row.overhead is None or row.overhead.ci_low_pct is None)
            and row.overhead_pct is not None
        ):
            assert big == [(" gh-big--open", "One pair, no interval")]


def test_pools_against_hand_arithmetic(reported: tuple[Artifact, ...]) -> None:
    pool = next(item for item in pools(reported) if item.name == "MLP on RTX A4000")
    # -0.41 -0.88 -7.39 -0.88: mean -2.39, SD 3.3406; t(0.975, 3) = 3.1824
    assert (pool.n, pool.machines) == (4, 4)
    assert pool.mean == pytest.approx(-2.39)
    assert pool.sd == pytest.approx(3.3406, abs=1e-3)
    assert pool.interval == pytest.approx((-7.706, 2.926), abs=2e-3)
    assert pool.prediction == pytest.approx((-14.276, 9.496), abs=4e-3)
    unknown = next(item for item in pools(reported) if item.name == "MLP on H100")
    assert unknown.machines is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (18.05, "+18.05%"),
        (-29.67, "\N{MINUS SIGN}29.67%"),
        (0.0, "0.00%"),
        (-0.001, "0.00%"),
        (None, "\N{EN DASH}"),
    ],
)
def test_percent(value: float | None, text: str) -> None:
    assert labels.percent(value) == text


def test_policy_hashes_inline_scripts_and_allows_nothing_else() -> None:
    # The digest of "alert('Hello, world.');" is the example of CSP Level 2, section 7.17.1 (MDN prints it).
    html = (
        "<head><meta charset=\"utf-8\"></head><script>alert('Hello, world.');</script>"
        '<script src="x.js"></script><script type="application/json">{}</script>'
    )
    assert inline_hashes(html) == ("'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='",)
    assert "'unsafe-inline'" not in policy(html)
    assert with_policy(html).index("Content-Security-Policy") < html.index("<script>") + 100


def test_markdown_tables_become_reachable_regions() -> None:
    html = framed_tables("<table><tr><td>1</td></tr></table><p><table><tr></tr></table>")
    assert html.count('role="region"') == 2
    assert 'aria-label="Table 2"' in html


def test_columns_are_aligned_without_inline_styles() -> None:
    html = framed_tables(
        '<table><td style="text-align: right;">1</td><td style="text-align: left;">a</td></table>'
    )
    assert "style=" not in html
    assert '<td class="n">1</td><td>a</td>' in html


def test_tamper_page_counts_what_was_refused_beside_its_controls(reported: tuple[Artifact, ...]) -> None:
    good = {"expectedCodes": [], "unwrapCalls": 1, "ok": True, "what": "honest"}
    scenarios = [
        good | {"code": "nonce-replay/control", "released": True, "expected": True, "reasonCodes": []},
        good
        | {"code": "nonce-replay", "released": False, "expected": False, "reasonCodes": ["nonce-replay"]},
        good
        | {"code": "stale-timestamp", "released": True, "expected": False, "reasonCodes": [], "ok": False},
    ]
    tamper = {"ranOn": "2026-11-21", "version": "0.1.0", "ok": False, "unwrapCalls": 1}
    tamper |= {"scenarios": scenarios}
    report = TamperReport.model_validate_json(json.dumps(tamper))
    page = render(publication_of(reported, tamper=report))["research/tamper-report.md"].decode()
    assert "<b>1</b> of 2 altered exchanges refused" in page
    assert "<b>1</b> of 1 controls released" in page
    assert "released, not as expected" in page
    assert "Not as it should be" in page


def test_a_check_that_had_nothing_to_look_at_is_shown_as_not_applicable(
    reported: tuple[Artifact, ...], make_run: Callable[..., tuple[Path, VerifiedRow]]
) -> None:
    artifact = artifact_from_verified(make_run(order="protected-only", gpu={"name": "auto"})[1])
    moot = {check.code for check in artifact.checks if check.vacuous}
    assert moot == {"raw-incomplete", "raw-files-not-removed", "gpu-not-as-asked"}
    assert parse_artifact(artifact_bytes(artifact)) == artifact
    data = artifact_bytes(artifact)
    assert data.count(b'"vacuous":true') == data.count(b'"vacuous"') == 3
    page = render(publication_of((*reported, artifact)))[f"rows/{artifact.id}.md"].decode()
    assert page.count("not applicable</span>") == 3
    assert page.count("holds</span>") == len(artifact.checks) - 3


def test_a_job_that_went_on_names_the_runs_before_it(
    reported: tuple[Artifact, ...], signed: Artifact, pages: dict[str, bytes]
) -> None:
    runs = ("20260101-120000-aaaaaa", "20260102-120000-bbbbbb")
    chain = Chain(runs=runs, leg="s000", launch=1, number=3, sha256="ab" * 32, steps=1000, witnessed=True)
    row = signed.model_copy(update={"chain": chain})
    page = render(publication_of((*reported, row)))[f"rows/{row.id}.md"].decode()
    assert f"went on from checkpoint 3 of run <code>{runs[1]}</code>" in page
    assert f"It is run 3 of a chain: <code>{runs[0]}</code>, <code>{runs[1]}</code>, this one" in page
    assert "Optimizer steps of all of them together: 1" in page
    assert b"went on from checkpoint" not in pages[f"rows/{row.id}.md"]
