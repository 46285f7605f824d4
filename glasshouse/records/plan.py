"""The plan: what a run will do, signed and entered in the ledger before anything is rented."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import PurePath

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import glasshouse
from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.measurement.schedule import build_schedule
from glasshouse.records.ledger import Ledger, Registered
from glasshouse.records.signing import PLAN_TYPE, sign_statement
from glasshouse.spec import LoraModel, Model, RunSpec, WithheldModel

WITHHELD = "withheld"


def public_spec(spec: RunSpec) -> RunSpec:
    """Return the spec as it is published: where a machine is and where files lie are withheld, and of a
    private job all of its model: sizes and settings are part of what is sealed, and a name stands for sizes.

    It is what the plan, and so everything that is recomputed from the bundle, is made from.
    """
    provider = spec.provider
    if provider.kind == "local":
        provider = provider.model_copy(update={"python": None})
    elif provider.kind == "ssh":
        known = None if provider.known_hosts is None else WITHHELD
        hidden = {"host": WITHHELD, "port": 22, "user": WITHHELD, "key": WITHHELD, "known_hosts": known}
        provider = provider.model_copy(update={**hidden, "python": "python3", "workdir": WITHHELD})
    else:
        provider = provider.model_copy(update={"base_url": "https://withheld.invalid", "python": "python3"})
    model: Model = spec.model
    if spec.payload == "private":
        weights = model.weights if isinstance(model, LoraModel | WithheldModel) else None
        model = WithheldModel(kind="withheld", workload=spec.workload, weights=weights)
        # How many steps an epoch has is the model's, so what is published are the steps.
        spec = spec.model_copy(update={"steps": spec.total_steps, "epochs": None})
    elif model.kind == "custom":
        path, _, name = model.entry.rpartition(":")
        data = tuple(PurePath(item).name for item in model.data)
        model = model.model_copy(update={"entry": f"{PurePath(path).name}:{name}", "data": data})
    elif model.kind == "lora" and model.weights_path is not None:
        model = model.model_copy(update={"weights_path": WITHHELD})
    return spec.model_copy(update={"provider": provider, "model": model})


def register_plan(
    ledger: Ledger, key: Ed25519PrivateKey, run: str, spec: RunSpec, *, version: str = glasshouse.__version__
) -> Registered:
    """Sign the plan of `run` and enter it in the ledger; returns its serial and envelope bytes.

    The spec is published as `public_spec(spec)`; the schedule is derived from it.
    """
    shown = public_spec(spec)
    dump = shown.model_dump(mode="json")

    def build(serial: int, now: float) -> bytes:
        predicate = {
            "run": run,
            "spec": dump,
            "schedule": [asdict(slot) for slot in build_schedule(shown)],
            "serial": serial,
            "registeredAt": round(now, 3),
            "version": version,
        }
        subjects = {"spec": sha256_hex(canonical_json(dump))}
        return sign_statement(key, PLAN_TYPE, predicate, subjects)

    return ledger.register_plan(run, build)
