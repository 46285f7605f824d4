"""Where conf/ is and which groups it offers, found without loading Hydra."""

from __future__ import annotations

from pathlib import Path

from glasshouse.errors import UsageError

GROUPS = ("provider", "gpu", "model", "policy", "measure", "experiment")


def conf_dir() -> Path:
    """Return the folder of conf/config.yaml: beside the package, else in the working folder.

    Raises UsageError when there is none.
    """
    for folder in (Path(__file__).resolve().parents[1] / "conf", Path.cwd() / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UsageError(
        "no conf/config.yaml",
        field="folder",
        value=Path.cwd(),
        remedy="run from a checkout of the repository",
    )


def options(group: str, conf: Path | None = None) -> list[str]:
    """Return the names that `group=` accepts, sorted."""
    return sorted(path.stem for path in ((conf or conf_dir()) / group).glob("*.yaml"))
