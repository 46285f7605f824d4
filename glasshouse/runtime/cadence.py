"""How often a leg says that it goes on: rarer, the longer it has run, since its bundle has so much room.

Of what a job took so far, each wait is a small share; so the number of events grows with the logarithm of its
length. tests/lifecycle/test_long_bundle.py adds up what that comes to.
"""

from __future__ import annotations

REPORT_SEC = 2.0
REPORT_SHARE = 0.01
WATCH_SHARE = 0.002
HEAD_SHARE = 0.004  # of a chain's age: how often its head is countersigned where nothing new came


def report_every(elapsed_sec: float) -> float:
    """Seconds between reports of progress."""
    return max(REPORT_SEC, REPORT_SHARE * elapsed_sec)


def watch_every(elapsed_sec: float, least_sec: float) -> float:
    """Seconds between records for whoever watches."""
    return max(least_sec, WATCH_SHARE * elapsed_sec)


def heads_every(elapsed_sec: float, least_sec: float) -> float:
    """Seconds between countersignatures of a head that stands."""
    return max(least_sec, HEAD_SHARE * elapsed_sec)
