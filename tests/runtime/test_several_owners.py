"""What a private leg seals for an owner with several keys opens with each of them: all that it seals."""

from __future__ import annotations

from glasshouse.canonical import parse_json
from glasshouse.records.pod_strings import strangers
from glasshouse.sealing.grant import WRAPPED_BYTES, generate_kem_key
from glasshouse.sealing.outputs import PREFIX_BYTES, open_outputs
from glasshouse.sealing.padding import FLOOR
from glasshouse.sealing.tree import INDEX_NAME
from tests.runtime.rig import rig
from tests.runtime.test_checkpointing import RESTORABLE


def test_checkpoints_records_log_and_outputs_open_with_either_key_and_with_no_other() -> None:
    spare = generate_kem_key()
    with rig(RESTORABLE, spares=[spare]) as one:
        leg = one.launch(private=True, checkpoint_sec=1.0, watch_sec=1.0, deadline_sec=60, seconds=3.0)
        assert leg.wait(60)["status"] == "complete", leg.log
        # What a keeper adds to what is published has its forms.
        said = [each for event in leg.events() for each in strangers("events.jsonl", event)]
        assert said == []
        assert list(strangers("result.json", parse_json((leg.folder / "result.json").read_bytes()))) == []
        context = {**leg.names, "manifestHash": one.manifest_hash}
        checkpoints = sorted((leg.folder / "checkpoints").glob("*.sealed"))
        records = sorted((leg.folder / "watch").glob("*.sealed"))
        assert checkpoints
        assert len(records) >= 2
        assert {path.stat().st_size for path in records} == {PREFIX_BYTES + WRAPPED_BYTES + FLOOR}
        sealed = [
            (leg.folder / "outputs.sealed", context, None),
            (leg.folder / "log.sealed", context, "trainer.log"),
            *((path, {**context, "checkpoint": str(int(path.stem))}, INDEX_NAME) for path in checkpoints),
            *((path, {**context, "watch": str(int(path.stem))}, "record") for path in records),
        ]
        for path, names, holds in sealed:
            found = []
            for held in (one.owner, spare, [generate_kem_key(), spare]):
                with open_outputs(path, held, context=names) as opened:
                    assert holds in opened.files if holds else "weights" in opened.tensors
                    found.append({name: bytes(data) for name, data in opened.files.items()})
            assert found[0] == found[1] == found[2]
