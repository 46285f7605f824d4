"""The landing page says what the rule of the headline says; a row page names its controls and its costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from glasshouse.judgement.headline import headlines
from glasshouse.publishing import labels
from glasshouse.publishing.artifact import Artifact
from glasshouse.publishing.from_bundle import artifact_from_verified, candidates, with_control_caveats
from glasshouse.publishing.pages import render
from glasshouse.records.verify import VerifiedRow

from .test_pages import publication_of

Reported = tuple[Artifact, ...]


@pytest.fixture(scope="module")
def rows(abba: tuple[Path, VerifiedRow]) -> list[Artifact]:
    """Three long block designs on three machines, with good controls of their kind."""
    made = artifact_from_verified(abba[1])
    assert made.overhead is not None
    base = made.model_copy(
        update={
            "overhead_pct": 0.3,
            "overhead": made.overhead.model_copy(update={"ci_low_pct": -0.4, "ci_high_pct": 1.0}),
            "provider": "runpod", "gpu": "h100", "gpu_model": "NVIDIA H100 80GB HBM3", "model": "mlp-large",
            "caveats": ("not-a-tee", "no-control", "payload-disclosed", "unwitnessed"),
        }
    )  # fmt: skip
    ours = [
        base.model_copy(update={"id": f"2026-11-2{n}-h100", "provider_instance_id": f"pod{n}"})
        for n in range(1, 4)
    ]
    controls = [
        base.model_copy(update={"id": f"2026-11-20-{kind}", "control": kind, "control_outcome": "passed"})
        for kind in ("aa", "delay")
    ]
    every = [*ours, *controls]
    return [with_control_caveats(row, every) for row in every]


def test_three_machines_with_controls_make_the_headline(reported: Reported, rows: list[Artifact]) -> None:
    (found,) = headlines(candidates(rows))
    assert found.stands
    page = render(publication_of((*reported, *rows)))["index.md"].decode()
    assert labels.percent(found.overhead_pct) in page
    assert found.prediction_pct is not None
    assert labels.interval(*found.prediction_pct) in page
    assert "None of our own yet" not in page
    for row in rows[:3]:
        assert f"rows/{row.id}/" in page


def test_without_their_controls_there_is_none_and_the_page_says_why(
    reported: Reported, rows: list[Artifact]
) -> None:
    alone = [with_control_caveats(row, rows[:3]) for row in rows[:3]]
    page = render(publication_of((*reported, *alone)))["index.md"].decode()
    assert "None of our own yet" in page
    assert "0 of 3 machines so far" in page
    assert "no-control" in page


def test_a_failed_control_takes_the_headline_away(reported: Reported, rows: list[Artifact]) -> None:
    failed = rows[3].model_copy(update={"control_outcome": "failed"})
    every = [*rows[:3], failed, rows[4]]
    judged = [with_control_caveats(row, every) for row in every]
    assert not any(found.stands for found in headlines(candidates(judged)))
    assert "control-failed" in render(publication_of((*reported, *judged)))["index.md"].decode()


def test_local_rows_never_make_one(reported: Reported, rows: list[Artifact]) -> None:
    local = publication_of((*reported, *rows), local=frozenset(row.id for row in rows))
    assert "None of our own yet" in render(local)["index.md"].decode()


def test_a_row_page_names_its_controls_and_where_the_time_went(
    reported: Reported, rows: list[Artifact]
) -> None:
    page = render(publication_of((*reported, *rows)))[f"rows/{rows[0].id}.md"].decode()
    assert "Its controls" in page
    for control in rows[3:]:
        assert f"rows/{control.id}/" in page
    assert "Where the time goes" in page
    assert "processor seconds per measured second" in page
