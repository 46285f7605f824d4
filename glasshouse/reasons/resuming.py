"""Why a job does not go on from a checkpoint: lifecycle/restore.py holds it against what its leg signed."""

from __future__ import annotations

from glasshouse.codes import Code
from glasshouse.reasons.entry import Place, Reason, explained

CHECKPOINTS: dict[Code, Reason] = {
    Code.CHECKPOINT_OLDER: explained(
        "A later checkpoint was countersigned",
        "The leg signed a later checkpoint than the newest at home, and its controller countersigned that. "
        "So the one at home is not the newest: it is taken only where it is asked for by its number.",
        Place.RESUME,
    ),
    Code.CHECKPOINT_TORN: explained(
        "Not the file that was sealed",
        "The checkpoint at home has not the size and the digest that its leg signed.",
        Place.RESUME,
    ),
    Code.CHECKPOINT_FOREIGN: explained(
        "Of another leg",
        "The events beside the checkpoint do not begin with the grant of a leg of this run, or another key "
        "signed them.",
        Place.RESUME,
    ),
    Code.CHECKPOINT_RENAMED: explained(
        "Another number",
        "What lies at home under this number was signed under another one.",
        Place.RESUME,
    ),
    Code.CHECKPOINT_CHAIN_BROKEN: explained(
        "Its events are not whole",
        "Of the events beside the checkpoint one is missing, out of place, not signed by the leg's key, or "
        "of another form.",
        Place.RESUME,
    ),
    Code.CHECKPOINT_HEAD_MISMATCH: explained(
        "Not what was countersigned",
        "The events beside the checkpoint do not extend what a controller countersigned of its leg.",
        Place.RESUME,
    ),
    Code.CHECKPOINT_NOT_WITNESSED: explained(
        "Nobody watched",
        "No controller watched when the checkpoint was made, so a later one may have been withheld; the "
        "policy takes none such.",
        Place.RESUME,
    ),
    Code.CHECKPOINT_NOT_RESTORED: explained(
        "Not restored",
        "The workload did not take the state that the checkpoint holds: it is of another form.",
        Place.LEG,
    ),
}
