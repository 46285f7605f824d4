"""Whether a project's files find room in a machine's memory, on a machine that says what tests let it say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.codes import Code
from glasshouse.errors import LegError
from glasshouse.lifecycle.room import check_room, free
from glasshouse.remote.pod import Pod
from glasshouse.workloads.package import prepare
from tests.specs import make_spec

MB = 1_000_000
TOOLS = """#!/bin/sh
case "$0 $*" in
{answers}
esac
exec /usr/bin/env -i PATH=/usr/bin:/bin "${{0##*/}}" "$@"
"""


def stand_in(pod: Pod, monkeypatch: pytest.MonkeyPatch, place: Path, answers: dict[str, str]) -> None:
    """Let `df` and `sed` on the pod say for a file or folder what a machine of another size would say."""
    place.mkdir()
    for tool in ("df", "sed"):
        cases = "\n".join(
            f"*/{tool}*{about}) printf '%s\\n' '{said}'; exit 0;;" for about, said in answers.items()
        )
        (place / tool).write_text(TOOLS.format(answers=cases))
        (place / tool).chmod(0o755)
    real = pod.run
    monkeypatch.setattr(
        pod, "run", lambda argv, **rest: real(["env", f"PATH={place}:/usr/bin:/bin", *argv], **rest)
    )


def test_this_machine_has_room_for_a_little_and_not_for_more_than_there_is(pod: Pod) -> None:
    check_room(pod, 4096, "ssh")
    with pytest.raises(
        LegError, match=r"has \d+ MB free \(provider=ssh\), the project needs 1000000000 MB"
    ) as found:
        check_room(pod, 10**15, "ssh")
    assert found.value.code is Code.SCRATCH_TOO_SMALL


@pytest.mark.parametrize("provider", ["local", "runpod", "vastai"])
def test_a_container_with_its_usual_64_mb_is_refused_with_both_sizes(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: str
) -> None:
    stand_in(pod, monkeypatch, tmp_path / "tools", {"/dev/shm": "shm 65536 16 65520 1% /dev/shm"})
    check_room(pod, 65520 << 10, provider)
    with pytest.raises(LegError) as found:
        check_room(pod, (65520 << 10) + 1, provider)
    assert found.value.line() == (
        f"the machine's shared memory has 67 MB free (provider={provider}), the project needs 67 MB there "
        "and room for what it writes (code=scratch-too-small): take a machine with more shared memory, or "
        "leave files out"
    )


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("/proc/meminfo", "memory 1953125 kB"),
        ("/memory.max", "limit 2000000000"),
        ("/memory.limit_in_bytes", "limit 2000000000"),
    ],
)
def test_shared_memory_that_is_larger_than_the_memory_promises_nothing(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, about: str, said: str
) -> None:
    large = {"/dev/shm": "shm 99999999 0 99999999 0% /dev/shm", "/proc/meminfo": "memory 99999999 kB"}
    stand_in(pod, monkeypatch, tmp_path / "tools", large | {about: said})
    check_room(pod, 2000 * MB, "runpod")
    with pytest.raises(
        LegError, match=r"has 2000 MB of memory for us \(provider=runpod\).*alone take 2100 MB"
    ) as found:
        check_room(pod, 2100 * MB, "runpod")
    assert found.value.code is Code.SCRATCH_TOO_SMALL


@pytest.mark.parametrize(
    "said", ["", "max", "limit max", "shm a b c d", "shm 1 1 99999999999999999999 1", "limit -1", "\x00\xff"]
)
def test_what_says_nothing_is_not_held_against_a_machine(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str
) -> None:
    stand_in(
        pod, monkeypatch, tmp_path / "tools", dict.fromkeys(("/dev/shm", "/proc/meminfo", "/memory.*"), said)
    )
    check_room(pod, 10**15, "ssh")


@given(
    st.text()
    | st.lists(st.sampled_from(["shm", "memory", "limit", "9", "-1", " ", "\n", "kB", "²"])).map("".join)
)
def test_whatever_a_machine_says_is_a_size_or_nothing(text: str) -> None:
    assert all(found is None or 0 <= found < 1 << 64 for found in free(text))


def test_small_files_take_whole_pages_of_memory(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("")
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text("x")
    (tmp_path / "large.bin").write_bytes(bytes(4097))
    model = {"kind": "project", "name": "project", "folder": str(tmp_path), "command": ["python", "main.py"]}
    payload = prepare(make_spec(model=model, order="protected-only", payload="private", duration=None))
    assert payload.scratch_bytes == 22 * 4096
