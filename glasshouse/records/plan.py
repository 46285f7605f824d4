"""The plan: what a run will do, signed and entered in the ledger before anything is rented."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import asdict

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import glasshouse
from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.errors import UsageError
from glasshouse.measurement.schedule import build_schedule
from glasshouse.records.ledger import Ledger, Registered
from glasshouse.records.secrets import scan_file
from glasshouse.records.signing import PLAN_TYPE, sign_statement
from glasshouse.records.withheld import blinded_model, sealed_salt
from glasshouse.runtime.blinding import SALT_BYTES
from glasshouse.spec import LoraModel, Model, Publication, RunSpec, WithheldModel

WITHHELD = "withheld"


def public_spec(spec: RunSpec, salt: bytes | None = None) -> RunSpec:
    """Return the spec as it is published: where a machine is and where files lie are withheld, and of a
    private job all of its model: sizes and settings are part of what is sealed, and a name stands for sizes.

    Of a workload of one's own names of files and parameters are salted digests, but for those that
    `publication.allow` names. salt: the run's; None makes one, which nobody keeps.

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
        hidden = {"base_url": "https://withheld.invalid", "trust_host": None, "python": "python3"}
        provider = provider.model_copy(update=hidden)
    model: Model = spec.model
    if spec.payload == "private":
        weights = model.weights if isinstance(model, LoraModel | WithheldModel) else None
        model = WithheldModel(kind="withheld", workload=spec.workload, weights=weights)
        # How many steps an epoch has is the model's, so what is published are the steps.
        # And nothing of it is published by name, so the names that were allowed are not either.
        spec = spec.model_copy(
            update={"steps": spec.total_steps, "epochs": None, "publication": Publication()}
        )
    elif model.kind == "custom":
        model = blinded_model(model, salt or secrets.token_bytes(SALT_BYTES), spec.publication.allow)
    elif model.kind == "lora" and model.weights_path is not None:
        model = model.model_copy(update={"weights_path": WITHHELD})
    continues = spec.continues
    if continues is not None:
        continues = continues.model_copy(update={"folder": WITHHELD})
    return spec.model_copy(update={"provider": provider, "model": model, "continues": continues})


def register_plan(
    ledger: Ledger,
    key: Ed25519PrivateKey,
    run: str,
    spec: RunSpec,
    *,
    version: str = glasshouse.__version__,
    salt: bytes | None = None,
    owners: Iterable[bytes] = (),
) -> Registered:
    """Sign the plan of `run` and enter it in the ledger; returns its serial and envelope bytes.

    The spec is published as `public_spec(spec, salt)`; the schedule is derived from it. owners: the owner's
    public keys (X-Wing), to each of which the salt is sealed.
    """
    shown = public_spec(spec, salt)
    sealed = () if salt is None else sealed_salt(salt, run, owners)
    dump = shown.model_dump(mode="json")
    # Before anything is rented: what stands in a plan is published with its row, and names the row.
    if found := scan_file("settings", canonical_json(dump), known=()):
        raise UsageError(
            f"a setting looks like what must not become public: {found[0].code}",
            field=found[0].where.removeprefix("settings."),
            value="(not repeated)",
            remedy="change it, or make it a private job: payload=private order=protected-only",
        )

    def build(serial: int, now: float) -> bytes:
        predicate = {
            "run": run,
            "spec": dump,
            "schedule": [asdict(slot) for slot in build_schedule(shown)],
            "serial": serial,
            "registeredAt": round(now, 3),
            "version": version,
            **({"sealedSalt": list(sealed)} if sealed else {}),
        }
        subjects = {"spec": sha256_hex(canonical_json(dump))}
        return sign_statement(key, PLAN_TYPE, predicate, subjects)

    return ledger.register_plan(run, build)
