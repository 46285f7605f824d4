"""Turn the sweeper's report into a `ReleaseProof`; shared by the providers that rent nothing."""

from __future__ import annotations

from collections.abc import Mapping

from glasshouse.providers.base import ReleaseProof


def proof_from_sweep(report: object) -> ReleaseProof:
    """Judge a report of remote/sweep_script.py; whatever is not exactly such a report proves nothing."""
    if not isinstance(report, Mapping):
        return unknown("the pod's clean-up report was not readable")
    left, removed, checked = (report.get(key) for key in ("processesLeft", "folderRemoved", "checkedAt"))
    if (
        type(left) is not int
        or left < 0
        or type(removed) is not bool
        or not isinstance(checked, list)
        or len(checked) != 2
        or not all(type(moment) in (int, float) for moment in checked)
    ):
        return unknown("the pod's clean-up report was not readable")
    active = left + (0 if removed else 1)
    folder = "its folder is gone" if removed else "its folder is still there"
    return ReleaseProof(
        proof="nonzero" if active else "zero",
        active=active,
        detail=f"{left} processes left, {folder} (looked twice{_means(report)})",
        processes_left=left,
        folder_removed=removed,
        checked_at=tuple(float(moment) for moment in checked),
    )


def _means(report: Mapping[object, object]) -> str:
    """How the sweeper looked for processes, and what it could not look into; "" where it did not say."""
    cgroup, closed = report.get("cgroup"), report.get("closed")
    if type(cgroup) is not bool or type(closed) is not int:
        return ""
    means = ": command line, environment, resource mark, open files, mounts, sessions and parents; "
    means += "control groups" if cgroup else "no control group can be made here"
    return means + (f"; {closed} processes of the account are closed to it" if closed > 0 else "")


def unknown(detail: str) -> ReleaseProof:
    """Nobody could look."""
    return ReleaseProof(proof="unknown", active=None, detail=detail)
