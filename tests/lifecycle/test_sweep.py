"""What the processes of a sweep tell each other through its folder. Whole sweeps: tests/e2e/test_sweep.py."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from glasshouse.errors import CleanupNotProven
from glasshouse.lifecycle.sweep import Sweep, begun
from glasshouse.providers.journal import Journal


def test_the_end_of_the_parent_stops_every_cell(tmp_path: Path) -> None:
    with begun(tmp_path) as sweep:
        assert sweep.stopped() == ""
    assert "is gone" in sweep.stopped()
    assert not sweep.folder.exists()
    assert replace(sweep, host="another, with folders of its own").stopped() == ""


def test_the_first_ctrl_c_stops_the_cells_and_ends_nothing_here(tmp_path: Path) -> None:
    def interrupted() -> None:
        with begun(tmp_path) as sweep:
            os.kill(os.getpid(), signal.SIGINT)
            assert sweep.stopped() == "interrupted"
            sweep.stop("another reason")
            assert sweep.stopped() == "interrupted"

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_machine_that_may_be_left_keeps_every_cell_from_renting_and_ends_the_sweep(tmp_path: Path) -> None:
    seen: list[Sweep] = []

    def left() -> None:
        with Journal() as journal, begun(tmp_path) as sweep:
            seen.append(sweep)
            journal.intend("run", "gh-mine", "runpod", {"sweep": str(sweep.folder)})
            journal.intend("run", "gh-other", "runpod", {"sweep": "another"})
            assert sweep.held(journal) == ""
            journal.closed("gh-mine", "unknown")
            assert sweep.held(journal) == "gh-mine may be left"
            assert sweep.stopped() == ""  # whoever has a machine goes on

    with pytest.raises(CleanupNotProven) as caught:
        left()
    assert "gh-mine at runpod" in caught.value.what
    assert "gh-other" not in caught.value.what
    assert "is gone" in seen[0].stopped()
