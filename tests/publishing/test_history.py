from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from glasshouse.canonical import parse_json
from glasshouse.errors import VerificationError
from glasshouse.publishing.artifact import Artifact, artifact_bytes
from glasshouse.publishing.history import (
    PublishedFigures,
    PublishedRow,
    ReportedRow,
    import_history,
    read_history,
    read_remarks,
    recompute,
)

ROOT = Path(__file__).parents[2]
HISTORY = ROOT / "conf/history"
COMMITTED = ROOT / "site/research/artifacts"
REFERENCE = ROOT.parent / "shared/reference/published-rows.json"


@pytest.fixture
def figures() -> Any:
    return parse_json((HISTORY / "published-rows.json").read_bytes())


def parsed(figures: Any) -> PublishedFigures:
    return PublishedFigures.model_validate_json(json.dumps(figures))


def figures_of(reference: Any) -> bytes:
    """What conf/history holds of the reference: its figures without its prose, one key a line."""
    names = {field.alias for field in PublishedRow.model_fields.values()}
    kept = {
        table: [{key: value for key, value in row.items() if key in names} for row in reference[table]]
        for table in PublishedFigures.model_fields
    }
    return (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode()


def test_importing_again_gives_the_committed_bytes() -> None:
    made = {row.artifact.id: artifact_bytes(row.artifact) for row in read_history(HISTORY)}
    there = {path.stem: path.read_bytes() for path in COMMITTED.glob("*.json")}
    assert {item: data for item, data in there.items() if b'"evidenceTier":"reported"' in data} == made


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference figures are not beside this checkout")
def test_figures_are_those_of_the_reference_and_no_more() -> None:
    reference = json.loads(REFERENCE.read_text("utf-8"))
    assert (HISTORY / "published-rows.json").read_bytes() == figures_of(reference)
    prose = [item["what"] for item in reference["observations"]]
    ours = (HISTORY / "remarks.json").read_text("utf-8") + (HISTORY / "published-rows.json").read_text(
        "utf-8"
    )
    for sentence in prose:
        words = sentence.split()
        runs = [" ".join(words[start : start + 8]) for start in range(len(words) - 7)]
        assert not [run for run in runs if run in ours], "own words"


def test_counts_tiers_and_statuses(reported: tuple[Artifact, ...]) -> None:
    assert len(reported) == 26
    kinds = Counter((row.status, row.order == "protected-only") for row in reported)
    assert kinds == {("reported", False): 22, ("reported", True): 2, ("excluded", False): 2}
    assert {row.evidence_tier for row in reported} == {"reported"}
    assert sum(row.overhead_pct is not None for row in reported) == 22
    assert all("reported-only" in row.caveats and "not-a-tee" in row.caveats for row in reported)


def test_every_overhead_follows_from_its_own_figures(figures: Any) -> None:
    for row in parsed(figures).rows:
        computed = recompute(row)
        assert computed is not None
        assert f"{computed.overhead_pct:.2f}" == f"{row.overhead_pct:.2f}", row.id


def test_rule_prefers_counts_over_rates() -> None:
    # 10 units in 2 s against 10 in 1 s, whatever the rates beside them say: 100 (1 - 5/10).
    counts = {"protected_epochs": 10, "protected_elapsed_sec": 2.0, "raw_epochs": 10, "raw_elapsed_sec": 1.0}
    rates = {"protected_epochs_per_sec": 1.0, "raw_epochs_per_sec": 1.0}
    computed = recompute(PublishedRow.model_construct(**counts, **rates))
    assert computed is not None
    assert (computed.overhead_pct, computed.source) == (50.0, "counts-and-elapsed")
    computed = recompute(PublishedRow.model_construct(protected_steps_per_sec=3.0, raw_steps_per_sec=4.0))
    assert computed is not None
    assert (computed.overhead_pct, computed.source) == (25.0, "rates")
    assert recompute(PublishedRow.model_construct(protected_steps_per_sec=3.0)) is None


def test_one_wrong_digit_stops_the_import(figures: Any) -> None:
    remarks = read_remarks(HISTORY)
    for index, row in enumerate(figures["rows"]):
        wrong = copy.deepcopy(figures)
        wrong["rows"][index]["overheadPct"] = round(row["overheadPct"] + 0.01, 2)
        with pytest.raises(VerificationError) as caught:
            import_history(parsed(wrong), remarks)
        assert caught.value.codes == (f"arithmetic-disagrees:{row['id']}",)


def test_a_remark_about_a_row_that_is_not_there_stops_the_import(figures: Any) -> None:
    figures["rows"] = [row for row in figures["rows"] if row["gpu"] != "pro6000"]
    with pytest.raises(VerificationError) as caught:
        import_history(parsed(figures), read_remarks(HISTORY))
    assert "remark-without-row:2026-05-15-runpod-pro6000-mlp-30m-raw-first" in caught.value.codes


def test_an_id_used_twice_stops_the_import(figures: Any) -> None:
    figures["rows"].append(figures["rows"][0])
    with pytest.raises(VerificationError) as caught:
        import_history(parsed(figures), read_remarks(HISTORY))
    assert caught.value.codes == (f"id-used-twice:{figures['rows'][0]['id']}",)


def test_only_the_importer_makes_reported_rows(reported: tuple[Artifact, ...]) -> None:
    with pytest.raises(TypeError):
        ReportedRow(reported[0], maker=object())


def test_order_that_is_not_known_stays_unknown(reported: tuple[Artifact, ...]) -> None:
    unclear = [row for row in reported if "order-unclear" in row.caveats]
    assert len(unclear) == 4
    assert all(row.order is None and row.id.endswith("order-unclear") for row in unclear)


def test_discrepancies_are_attached_to_the_rows_they_concern(reported: tuple[Artifact, ...]) -> None:
    by_id = {row.id: row for row in reported}

    def codes(row: str) -> set[str]:
        found = by_id[row].reported
        assert found is not None
        return {item.code for item in found.observations}

    assert "headlines-conflict" in codes("2026-05-16-runpod-h100-mlp-30m-protected-first")
    assert "equal-losses-different-digests" in codes("2026-05-17-runpod-h100-qwen2.5-7b-30m-order-unclear")
    assert "inferred-fields" in codes("2026-05-17-runpod-rtx3090-qwen2.5-0.5b-60m-raw-first-excluded")
    superseded = by_id["2026-05-17-runpod-rtx3090-qwen2.5-0.5b-60m-raw-first-excluded"].superseded_by
    assert superseded in by_id
