"""What is said of a project before it is sealed."""

from __future__ import annotations

from pathlib import Path

import pytest

from glasshouse.spec import Gpu, ProjectModel
from glasshouse.workloads.project import look

UNNAMED = (
    "neither the command nor a source or settings file names outputs: "
    "results that are written elsewhere are lost (model.outputs)"
)


@pytest.mark.parametrize(
    ("name", "text", "more", "named"),
    [
        ("train.py", "outputs = model(x)\nopen('runs/a', 'w')", (), False),
        ("train.py", "torch.save(x, 'outputs/a.pt')", (), True),
        ("train.py", 'Path(root, "outputs").mkdir()', (), True),
        ("train.py", "f'{root}/outputs/a'", (), True),
        ("train.py", "'my_outputs/a'", (), False),
        ("conf/a.yaml", "output_dir: outputs", (), True),
        ("notes.md", "outputs", (), False),
        ("train.py", "", ("--to", "./outputs/a"), True),
        ("train.py", "", ("--to=outputs",), True),
        ("train.py", "", ("--outputs_at=runs",), False),
    ],
)
def test_a_folder_of_results_that_nothing_names_is_said(
    tmp_path: Path, name: str, text: str, more: tuple[str, ...], named: bool
) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    model = ProjectModel(
        kind="project", name="p", folder=str(tmp_path), command=("python", "train.py", *more)
    )
    found = look(model, Gpu(name="cpu"))
    assert (UNNAMED not in found.lines) is named
    assert "comes back: outputs/ (model.outputs), and nothing that it writes elsewhere" in found.lines
