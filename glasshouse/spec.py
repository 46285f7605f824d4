"""`RunSpec`: everything a run will do, in one frozen, strict value.

Hydra composes conf/ (config.py); this model decides. Nothing past this point sees a DictConfig.
Units are in the names: Sec seconds, Usd US dollars, Pct percent.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Order = Literal["raw-first", "protected-first", "abba", "protected-only"]
Arm = Literal["raw", "protected"]
Control = Literal["none", "aa", "delay"]

PAID_PROVIDERS = ("runpod", "vastai")
REMOTE_PATH = r"^[A-Za-z0-9._/+\-]+$"
REMOTE_PATH_TEXT = "a path without spaces or quotes: letters, digits, . _ / + -"
MODEL_NAME = r"^[a-z0-9.\-]+$"
MODEL_NAME_TEXT = "lower-case letters, digits, . and -"


class Strict(BaseModel):
    """Base of all configuration values: no coercion, no unknown keys, no mutation, no infinities.

    A field with a pattern carries a description: what a person is told it must be.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class LocalProvider(Strict):
    """This machine, through an embedded SSH server on loopback."""

    kind: Literal["local"]
    python: str | None = None  # the pod's interpreter; None: the one that runs Glasshouse
    threads: int | None = Field(default=None, ge=1, le=4096)  # OMP_NUM_THREADS on the pod
    boot_deadline_sec: float = Field(default=30.0, gt=0, le=3600)


class SshProvider(Strict):
    """Any machine with sshd and Python; it is not rented, so release removes only our folder."""

    kind: Literal["ssh"]
    host: str = Field(
        min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:\-]+$", description="a host name or address"
    )
    port: int = Field(default=22, ge=1, le=65535)
    user: str = Field(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._\-]+$",
        description="a user name: letters, digits, . _ -",
    )
    key: str = Field(min_length=1)  # path of the private key
    known_hosts: str | None = None  # path; None: first use is recorded, and policy strict refuses
    python: str = Field(default="python3", pattern=REMOTE_PATH, description=REMOTE_PATH_TEXT)
    workdir: str = Field(default=".glasshouse", pattern=REMOTE_PATH, description=REMOTE_PATH_TEXT)
    boot_deadline_sec: float = Field(default=60.0, gt=0, le=3600)


class CloudProvider(Strict):
    """RunPod or Vast.ai: what to ask for. Credentials come from the environment only."""

    kind: Literal["runpod", "vastai"]
    base_url: str = Field(
        pattern=r"^https?://", description="an https:// address, or http:// on this machine"
    )
    # base_url's host, where it is neither the vendor's nor this machine's: the key may be sent there.
    trust_host: str | None = Field(
        default=None,
        max_length=253,
        pattern=r"^[A-Za-z0-9.:\-]+$",
        description="the host in provider.base_url, without a port",
    )
    image: str = Field(min_length=1)
    disk_gb: int = Field(default=40, ge=10, le=2000)
    region: str | None = None
    interruptible: bool = False
    tier: str = "secure"
    python: str = "python3"
    boot_deadline_sec: float = Field(default=1200.0, gt=0, le=7200)
    request_timeout_sec: float = Field(default=30.0, gt=0, le=300)
    doubt_sec: float = Field(default=300.0, gt=0, le=7200)  # that an unanswered create may yet make a machine
    lag_sec: float = Field(default=120.0, gt=0, le=7200)  # that answers may be behind what they tell of
    max_doubts: int = Field(default=2, ge=1, le=20)  # creates without an answer that may be in doubt at once


Provider = Annotated[LocalProvider | SshProvider | CloudProvider, Field(discriminator="kind")]


class Gpu(Strict):
    """One GPU type: exact names per provider, prices, and limits for the roofline note."""

    name: str = Field(pattern=r"^[a-z0-9\-]+$", description="lower-case letters, digits and -")
    provider_names: dict[str, str] = {}
    count: int = Field(default=1, ge=1, le=16)
    max_usd_per_hour: dict[str, float] = {}
    peak_bf16_tflops: float | None = Field(default=None, gt=0)
    memory_gbps: float | None = Field(default=None, gt=0)
    compute_capability: str | None = None


MAX_HOURS = 24.0 * 14
MAX_STEPS = 10_000_000


class Job(Strict):
    """What any model's private job may be told besides; a run that measures heeds none of it.

    checkpoint_ready: a file of the outputs whose appearance or change marks a set of files as whole: a path
    in that folder, or a pattern of one. Of a project alone: other models have no such folder.
    unattended: whether its machine goes on without a controller, to the job's end or its ceiling.
    """

    max_hours: float | None = Field(default=None, gt=0, le=MAX_HOURS)  # its ceiling: it is asked to end then
    checkpoint_min: float = Field(default=10.0, ge=0, le=24 * 60.0)  # minutes between checkpoints; 0: none
    checkpoint_ready: str | None = Field(default=None, min_length=1, max_length=1024)
    watch_sec: float = Field(default=30.0, ge=0, le=3600)  # between records for who watches; 0: none
    unattended: Literal["finish", "stop"] = "finish"
    max_resumes: int = Field(default=2, ge=0, le=10)  # machines in place of interruptible ones taken away

    @model_validator(mode="after")
    def _ready(self) -> Job:
        ready, project = self.checkpoint_ready, isinstance(self, ProjectModel)
        if ready is None:
            return self
        if not project:
            raise ValueError(
                "model.checkpoint_ready names a file in the outputs' folder, which this model has not: it is "
                "a setting of a project; leave it out"
            )
        if not {"", ".", ".."}.isdisjoint(ready.split("/")) or "\\" in ready or not ready.isprintable():
            raise ValueError(
                f"model.checkpoint_ready={ready} is no path in the outputs' folder: give one from there, "
                "such as done or step-*/done, with / between its parts and without . and .."
            )
        return self


class MlpModel(Job):
    """A multi-layer perceptron trained on seeded synthetic data.

    An epoch is `batches_per_epoch` optimiser steps of `batch` rows. Data are drawn once per
    leg from `data_seed` on the device and reused, so host transfer is not what is measured.
    """

    kind: Literal["mlp"]
    name: str = Field(pattern=MODEL_NAME, description=MODEL_NAME_TEXT)
    inputs: int = Field(ge=1, le=65536)
    hidden: int = Field(ge=1, le=65536)
    layers: int = Field(ge=1, le=64)  # hidden layers
    classes: int = Field(ge=2, le=65536)
    batch: int = Field(ge=1, le=1 << 20)
    batches_per_epoch: int = Field(ge=1, le=100_000)
    learning_rate: float = Field(gt=0, le=10)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_seed: int = Field(default=20260101, ge=0, lt=2**53)

    @property
    def epoch_of(self) -> tuple[int, int]:
        """Rows in an epoch, and in a step."""
        return self.batches_per_epoch * self.batch, self.batch


class LoraModel(Job):
    """A causal language model from a transformers config, trained through a LoRA adapter."""

    kind: Literal["lora"]
    name: str = Field(pattern=MODEL_NAME, description=MODEL_NAME_TEXT)
    model_id: str
    revision: str | None = None
    architecture: dict[str, int | float | bool | str]  # transformers config of the base model
    weights: Literal["random", "pretrained", "sealed"] = "random"
    weights_path: str | None = None  # sealed: folder of .safetensors files here, on the operator's side
    weights_seed: int = Field(default=20260102, ge=0, lt=2**53)
    file_sha256: dict[str, str] = {}
    rank: int = Field(default=4, ge=1, le=1024)
    alpha: int = Field(default=8, ge=1, le=4096)
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    batch: int = Field(default=1, ge=1, le=4096)
    max_length: int = Field(default=64, ge=2, le=131072)
    learning_rate: float = Field(gt=0, le=10)
    grad_clip: float = Field(default=1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    data_seed: int = Field(default=20260103, ge=0, lt=2**53)
    examples: int = Field(default=256, ge=1, le=10_000_000)

    @property
    def epoch_of(self) -> tuple[int, int]:
        """Examples in an epoch, one pass over all of them, and in a step."""
        return self.examples, self.batch

    @model_validator(mode="after")
    def _whole(self) -> LoraModel:
        if self.weights == "sealed" and not self.weights_path:
            raise ValueError("model.weights=sealed needs model.weights_path=FOLDER, of .safetensors files")
        if self.weights != "sealed" and self.weights_path is not None:
            raise ValueError("model.weights_path is what is sealed: it needs model.weights=sealed")
        return self


class CustomModel(Job):
    """A user's own workload: `entry` is `path/to/file.py:Workload`, sealed and run like the rest."""

    kind: Literal["custom"]
    name: str = Field(pattern=MODEL_NAME, description=MODEL_NAME_TEXT)
    entry: str = Field(
        pattern=r"^[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$",
        description="a Python file and the name of the workload in it, as in path/to/file.py:Workload",
    )
    data: tuple[str, ...] = ()  # files sealed with it
    params: dict[str, int | float | bool | str] = {}


class ProjectModel(Job):
    """A user's own project as it is: a folder and a command, sealed, run, and its files brought back.

    The command is what stands behind `--` on the command line. `data` are files and folders from elsewhere
    (under data/ in the project), `env` names of environment variables whose values of now are sealed.
    """

    kind: Literal["project"]
    name: str = Field(pattern=MODEL_NAME, description=MODEL_NAME_TEXT)
    folder: str = Field(min_length=1)
    command: tuple[str, ...] = ()
    # A folder in it: what lies there comes back. ".": what the command made or changed in all of it.
    outputs: str = Field(default="outputs", min_length=1)
    include: tuple[str, ...] = ()  # patterns of files that git does not track
    data: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    requirements: str = Field(default="auto", min_length=1)  # a file in the folder, auto or none
    network: Literal["none", "open"] = "none"


Workload = Literal["mlp", "lora", "custom", "project"]


class WithheldModel(Strict):
    """What a private job's plan says of its model: enough to judge by, nothing that names or sizes it."""

    kind: Literal["withheld"]
    workload: Workload
    weights: Literal["random", "pretrained", "sealed"] | None = None  # lora: where the base weights are from

    @property
    def name(self) -> str:
        """What stands where the name of a model does."""
        return f"private-{self.workload}"


Model = Annotated[
    MlpModel | LoraModel | CustomModel | ProjectModel | WithheldModel, Field(discriminator="kind")
]


class Policy(Strict):
    """What the Verifier demands before the payload key is released."""

    name: Literal["standard", "strict"]
    freshness_sec: int = Field(ge=1, le=600)
    require_landlock: bool
    require_memfd_secret: bool
    require_distributions: bool = False  # the controller listed beforehand what is installed on the pod
    allow_host_key_first_use: bool
    # Of a project, and kept by the leg itself: what it could not keep the job from, it does not start.
    require_confined_reads: bool = False
    refuse_execs: bool = False
    require_witnessed_checkpoints: bool = False  # of from=RUN: made while this side watched
    anti_debug_profile: Literal["standard", "strict"]
    launch_retries: int = Field(default=2, ge=0, le=2)


class Measure(Strict):
    """How legs are timed and judged (site/method.md explains each)."""

    warmup_sec: float = Field(ge=0, le=600)
    discard_sec: float = Field(ge=0, le=600)  # start of each abba slot, not counted
    blocks: int = Field(ge=8, le=100)  # of order=abba; the same bound for every order of a sweep
    burn_in_slots: int = Field(default=1, ge=0, le=10)
    margin_pct: float = Field(gt=0, le=50)
    delay_pct: float = Field(default=3.0, gt=0, le=50)  # the positive control's injected delay
    duration_tolerance_pct: float = Field(gt=0, le=50)
    head_interval_sec: float = Field(gt=0, le=60)  # how often event heads are countersigned
    leg_deadline_factor: float = Field(default=3.0, ge=1, le=20)
    leg_deadline_extra_sec: float = Field(default=180.0, ge=10, le=7200)
    # Measuring fixed steps: what a step may take on average; the leg is ended there. A job's: Job.max_hours.
    step_ceiling_sec: float = Field(default=1.0, gt=0, le=3600)


class Continues(Strict):
    """The checkpoint, or of a project also the outputs, that a run begins with (`from=RUN`).

    As this side found it before anything was rented.

    runs: ids of the runs of the chain, the first one first. leg, launch, number: of the checkpoint in the
    last of them, number None: what that leg left as its outputs; sha256: of its ciphertext,
    as that leg signed it. steps, seconds: made from the very beginning until then; None: nobody counted.
    witnessed: an operator's controller countersigned the events that name it while they were made. folder: of
    the last run, on this machine.
    """

    runs: tuple[str, ...] = Field(min_length=1, max_length=1000)
    leg: str = Field(pattern=r"^s\d{3}$", description="a leg's id")
    launch: int = Field(ge=1, le=1000)
    number: int | None = Field(default=None, ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits")
    steps: int | None = Field(default=None, ge=0, lt=2**53)
    seconds: float | None = Field(default=None, ge=0)
    witnessed: bool
    folder: str = Field(min_length=1)

    @property
    def given(self) -> str:
        """What `from=` names it by."""
        return f"{self.runs[-1]}{'' if self.number is None else f'@{self.number}'}"


class Spend(Strict):
    """The cost cap; paid providers require one, here or in GLASSHOUSE_MAX_USD."""

    max_usd: float | None = Field(default=None, gt=0, le=100_000)


Publishable = Annotated[
    str,
    Field(
        pattern=r"^(?:(?:model\.params|unitInfo)\.[A-Za-z][A-Za-z0-9_]{0,39}|model\.entry|model\.data)$",
        description="model.params.NAME, unitInfo.NAME, model.entry or model.data",
    ),
]


class Publication(Strict):
    """What of a workload of one's own is published as it is; of the rest, salted digests are."""

    allow: tuple[Publishable, ...] = Field(default=(), max_length=64)


class RunSpec(Strict):
    """One run: one Hydra cell, one allocation."""

    provider: Provider
    gpu: Gpu
    model: Model
    policy: Policy
    measure: Measure
    spend: Spend = Spend()
    publication: Publication = Publication()
    order: Order
    duration: float | None = Field(gt=0, le=86_400)  # measured seconds per arm
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)  # fixes the work instead
    epochs: int | None = Field(default=None, ge=1, le=MAX_STEPS)  # as many steps as these have
    control: Control = "none"
    payload: Literal["public", "private"] = "public"
    seed: int = Field(ge=0, lt=2**53)
    repeat: int = Field(default=0, ge=0, le=10_000)
    continues: Continues | None = None  # what `from=RUN` came to

    @model_validator(mode="after")
    def _whole(self) -> RunSpec:
        if self.workload == "project":
            self._job()
        else:
            self._length()
        if self.payload == "private" and self.order != "protected-only":
            raise ValueError("payload=private discloses nothing: it needs order=protected-only")
        if self.job and isinstance(self.model, Job):
            self._ceiling(self.model.max_hours)
        if self.control != "none" and self.order == "protected-only":
            raise ValueError("a control compares two arms: it cannot be order=protected-only")
        if self.model.kind == "withheld" and self.payload == "public":
            raise ValueError("a model is withheld of a private job only: give the settings of a model")
        if self.continues is not None and not self.job:
            raise ValueError(
                "from=RUN goes on from a private job: it needs payload=private order=protected-only"
            )
        return self

    def _length(self) -> None:
        """Exactly one of seconds, steps and epochs, and epochs that are whole steps."""
        given = [name for name in ("duration", "steps", "epochs") if getattr(self, name) is not None]
        if not given:
            raise ValueError("give duration=SECONDS, steps=N or epochs=N: how long it is to train")
        if len(given) > 1:
            raise ValueError(f"give exactly one of {' and '.join(given)}")
        if self.epochs is None:
            return
        if self._epoch is None:
            raise ValueError(f"epochs are not known of model={self.workload}: give steps=N")
        rows, step = self._epoch
        if self.epochs * rows % step:
            whole = math.lcm(rows, step) // rows
            raise ValueError(
                f"epochs of {rows} examples in batches of {step} end inside a step: "
                f"give a multiple of {whole}, or another model.batch"
            )
        if self.epochs * rows // step > MAX_STEPS:
            raise ValueError(f"epochs would be more than {MAX_STEPS} steps")

    def _job(self) -> None:
        """A project ends when its command does, and discloses nothing."""
        if self.order != "protected-only":
            raise ValueError(
                "order has a raw arm, which would lay the project open: model=project has none yet"
            )
        if self.payload != "private":
            raise ValueError("payload=public would lay the project open: a model=project is a private job")
        if any(each is not None for each in (self.duration, self.steps, self.epochs)):
            raise ValueError(
                "duration, steps and epochs are no part of a project, which ends when its command does"
            )

    def _ceiling(self, hours: float | None) -> None:
        """Of a job whose length nobody gave, it has to be said where it costs money."""
        if hours is None and self.paid and self.duration is None:
            raise ValueError("model.max_hours is missing: on a machine that is paid for, say when to stop")
        if hours is not None and self.duration is not None and self.duration > hours * 3600:
            raise ValueError(
                "model.max_hours would end it before its duration is over: raise the one or lower the other"
            )

    @property
    def job(self) -> bool:
        """Whether it is a private job: nothing is measured, and it has a ceiling."""
        return self.payload == "private" and self.order == "protected-only"

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps that an arm is to make, None where its seconds are fixed."""
        if self.epochs is None or self._epoch is None:
            return self.steps
        rows, step = self._epoch
        return self.epochs * rows // step

    @property
    def _epoch(self) -> tuple[int, int] | None:
        return self.model.epoch_of if isinstance(self.model, MlpModel | LoraModel) else None

    @property
    def amount(self) -> str:
        """What an arm is asked to make, in words: `100 steps`, `3 epochs, 12 steps`, `20 s`."""
        if self.workload == "project":
            return "its command"
        if self.duration is not None:
            return f"{self.duration:g} s"
        epochs = "" if self.epochs is None else f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}, "
        return f"{epochs}{self.total_steps} step{'' if self.total_steps == 1 else 's'}"

    @property
    def paid(self) -> bool:
        """Whether the provider charges money."""
        return self.provider.kind in PAID_PROVIDERS

    @property
    def workload(self) -> Workload:
        """Which kind of workload trains."""
        return self.model.workload if self.model.kind == "withheld" else self.model.kind
