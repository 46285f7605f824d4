"""What becomes of a project's requirements and imports, for `plan` and `doctor`: nothing is fetched."""

from __future__ import annotations

from pathlib import Path

from glasshouse.errors import GlasshouseError
from glasshouse.spec import ProjectModel, RunSpec
from glasshouse.workloads import project
from glasshouse.workloads.installed import known_machine
from glasshouse.workloads.outlook import Outlook, outlook
from glasshouse.workloads.wheels import check_machine


def needed(spec: RunSpec, conf: Path | None = None) -> Outlook | None:
    """Look ahead; None of other models. An interpreter that does not answer, and a list of an image's
    packages that is none, are as if there were none. Raises UsageError for what could not be run.
    """
    if not isinstance(spec.model, ProjectModel):
        return None
    found = project.look(spec.model, spec.gpu)
    try:
        machine = known_machine(spec.provider, conf)
    except GlasshouseError:
        machine = None
    if machine is not None:
        check_machine(found.needs, machine.target, machine.packages)
    return outlook(found.needs, found.modules, machine)
