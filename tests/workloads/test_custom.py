"""A user's own workload: the example as it stands, and every way in which a file can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glasshouse.errors import LegError, UsageError
from glasshouse.runtime import harness
from glasshouse.runtime.session import SESSION_PARTS
from glasshouse.workloads.package import Payload
from tests.workloads.conftest import custom, digests, session_of

MakePayload = Callable[..., Payload]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "finetune_jsonl.py"
NOTES = ROOT / "examples" / "notes.jsonl"

WHOLE = """
import torch

class Workload:
    unit, steps_per_unit = "steps", 1
    def __init__(self, params, files, device):
        self.params, self.files, self.device = params, files, device
        self.info = {}
        self.weight = torch.zeros(4)
    def run_unit(self): self.weight += 1
    def synchronize(self): pass
    def loss(self): return 1.0
    def trainable(self): return {"weight": self.weight}
    def buffers(self): return [self.weight]
"""


def written(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(source)
    return path


# --- what is refused on this side, exit 2 ---------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class Workload:\n    def run_unit(self)\n", "does not compile: line 2"),
        ("class Other: pass\n", "defines no Workload (model.entry="),
        ("import os\n", "define it; see site/custom-workload.md"),
        ("Workload = 3\n", "Workload is not callable"),
        ("Workload = {'a': 1}\n", "Workload is not callable"),
        ("class Workload:\n    def run_unit(self): pass\n", "synchronize(), loss(), trainable(), buffers()"),
        (WHOLE.replace("def loss", "def losses"), "the workload lacks loss() (model.entry="),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_one_line(
    payload_of: MakePayload, tmp_path: Path, source: str, said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        payload_of(custom(written(tmp_path, source)))
    assert said in refused.value.line()
    assert "\n" not in refused.value.line()
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "source",
    [
        "from elsewhere import *\n",
        "from elsewhere import Workload\n",
        "def Workload(params, files, device): return None\n",
        "from elsewhere import Base\nclass Workload(Base): pass\n",
        "try:\n    import torch\nexcept ImportError:\n    pass\nelse:\n    class Workload: pass\n",
        "class Workload:\n    def __getattr__(self, name): return None\n",
        "make = lambda *args: None\nWorkload = make\n",
    ],
)
def test_what_cannot_be_seen_from_here_is_left_to_the_pod(
    payload_of: MakePayload, tmp_path: Path, source: str
) -> None:
    assert payload_of(custom(written(tmp_path, source))).builder == "Workload"


def test_two_data_files_of_one_name_and_a_missing_one_are_refused(
    payload_of: MakePayload, tmp_path: Path
) -> None:
    path = written(tmp_path, WHOLE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text("data")
    with pytest.raises(UsageError, match="two data files of one name"):
        payload_of(custom(path, data=[str(path), str(tmp_path / "other" / "mine.py")]))
    with pytest.raises(UsageError, match="cannot read the file"):
        payload_of(custom(path, data=[str(tmp_path / "absent")]))


UNITS = WHOLE.replace('unit, steps_per_unit = "steps", 1', "unit = 'rounds'\n    steps_per_unit = 4")


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        (UNITS, {"steps": 10}, "they end inside a unit of 4 steps (steps=10): give steps=8 or steps=12, or"),
        (UNITS, {"steps": 3}, "they end inside a unit of 4 steps (steps=3): give steps=4, or a method"),
        (WHOLE.replace('"steps", 1', '"steps", 4'), {"steps": 9}, "give steps=8 or steps=12"),
        # 8 blocks: 16 slots of an arm, each of which makes its share by itself.
        (UNITS, {"steps": 100, "order": "abba"},
         "in each of 16 slots of an arm (steps=100): give steps=64 or steps=128"),
    ],
)  # fmt: skip
def test_steps_that_end_inside_a_unit_are_refused_with_the_two_nearest(
    payload_of: MakePayload, tmp_path: Path, source: str, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        payload_of(custom(written(tmp_path, source)), duration=None, **changes)
    assert said in refused.value.line()
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("source", "steps"),
    [
        (UNITS, 12),
        (UNITS + "    def run_steps(self, count): pass\n", 10),
        (UNITS.replace("= 4", "= len('four')"), 10),  # the pod will tell
        (UNITS.replace("class Workload", "class Whole") + "class Workload(Whole): pass\n", 10),
    ],
)
def test_steps_of_whole_units_or_of_a_class_that_can_do_less_are_taken(
    payload_of: MakePayload, tmp_path: Path, source: str, steps: int
) -> None:
    assert payload_of(custom(written(tmp_path, source)), duration=None, steps=steps).builder == "Workload"


# --- what the pod refuses, by a code --------------------------------------------------------------


@pytest.mark.train
@pytest.mark.parametrize(
    ("source", "code"),
    [
        (WHOLE.replace("class Workload", "class Whole") + "class Workload(Whole):\n    loss = property()\n",
         "workload-lacks-loss"),
        (WHOLE.replace("unit, steps_per_unit", "unit, steps_a_unit"), "workload-lacks-steps-per-unit"),
        ("Workload = __name__\n", "workload-not-callable"),
        ("try:\n    pass\nfinally:\n    del __name__\nfrom math import *\n", "workload-not-callable"),
    ],
)  # fmt: skip
def test_a_session_that_lacks_something_is_named_by_its_code(
    payload_of: MakePayload, tmp_path: Path, source: str, code: str
) -> None:
    payload = payload_of(custom(written(tmp_path, source)))
    with pytest.raises(LegError) as failed:
        session_of(payload)
    assert failed.value.code == code


@pytest.mark.train
def test_it_gets_its_settings_its_files_and_the_device(payload_of: MakePayload, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"my data")
    model = custom(
        written(tmp_path, WHOLE), data=[str(tmp_path / "notes.txt")], params={"rate": 0.5, "deep": True}
    )
    session = session_of(payload_of(model))
    assert session.params == {"rate": 0.5, "deep": True}
    assert {name: bytes(view) for name, view in session.files.items()} == {"notes.txt": b"my data"}
    assert session.device == "cpu"


# --- the example ------------------------------------------------------------------------------------


def example(**params: object) -> object:
    return custom(EXAMPLE, "Finetune", data=[str(NOTES)], params=params)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a leg runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.train
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_example_learns_its_notes_and_leaves_no_file(payload_of: MakePayload, scratch: Path) -> None:
    payload = payload_of(example())
    session = session_of(payload)
    session.run_unit()
    first = session.loss()
    for _ in range(24):
        session.run_unit()
    assert first == pytest.approx(5.55, abs=0.4)  # ln(258): it knows nothing yet
    assert session.loss() < 0.8 * first
    assert session.driver.taken == session.trainer.state.global_step == 25
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


@pytest.mark.train
def test_the_example_begins_alike_in_both_arms(payload_of: MakePayload, scratch: Path) -> None:
    one, same = (session_of(payload_of(example())) for _ in range(2))
    assert digests(one) == digests(same)
    for session in (one, same):
        for _ in range(3):
            session.run_unit()
    assert digests(one) == digests(same)
    assert digests(session_of(payload_of(example(seed=2)))) != digests(one)
    assert harness.tensor_digest(one.given(), b"s") == harness.tensor_digest(same.given(), b"s")


@pytest.mark.train
def test_the_trainers_error_comes_out_where_the_step_was_asked_for(
    payload_of: MakePayload, scratch: Path
) -> None:
    session = session_of(payload_of(example()))
    session.run_unit()

    def fails(*args: object, **kwargs: object) -> None:
        raise FloatingPointError("on purpose")

    session.trainer.compute_loss = fails
    with pytest.raises(FloatingPointError, match="on purpose"):
        session.run_unit()


@pytest.mark.train
def test_records_count_the_completion_only(payload_of: MakePayload, scratch: Path) -> None:
    session = session_of(payload_of(example(length=32)))
    module = __import__("sys").modules["glasshouse_workload"]
    records = module.Records(b'{"prompt": "ab", "completion": "cd"}\n', 256)
    assert records[0] == ([97, 98, 99, 100, 257], [-100, -100, 99, 100, 257])
    batch = module.collate([records[0], ([1], [1])])
    assert batch["input_ids"].tolist()[1] == [1, 256, 256, 256, 256]
    assert batch["labels"].tolist()[1] == [1, -100, -100, -100, -100]
    assert batch["attention_mask"].tolist()[1] == [1, 0, 0, 0, 0]
    assert all(len(tokens) <= 32 for tokens, _ in session.records.items)
    with pytest.raises(ValueError, match="no record has room"):
        module.Records(b'{"prompt": "abc", "completion": "d"}', 2)


@pytest.mark.train
def test_the_class_on_the_how_to_page_is_whole_and_learns(payload_of: MakePayload, tmp_path: Path) -> None:
    page = (ROOT / "site" / "custom-workload.md").read_text()
    source = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "numbers.bin").write_bytes(bytes(range(64)))
    session = session_of(
        payload_of(
            custom(written(tmp_path, source), data=[str(tmp_path / "numbers.bin")], params={"rate": 1e-4})
        )
    )
    session.run_unit()
    first = session.loss()
    for _ in range(50):
        session.run_unit()
    assert session.loss() < 0.5 * first


def test_the_how_to_page_names_every_part_of_a_session() -> None:
    page = (ROOT / "site" / "custom-workload.md").read_text()
    for part in SESSION_PARTS:
        assert f"| `{part}` |" in page or f"| `{part}()` |" in page, part
