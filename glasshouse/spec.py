"""`RunSpec`: everything a run will do, in one frozen, strict value.

Hydra composes conf/ (config.py); this model decides. Nothing past this point sees a DictConfig.
Units are in the names: Sec seconds, Usd US dollars, Pct percent.
"""

from __future__ import annotations

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


class Job(Strict):
    """What any model's private job may be told besides; a run that measures heeds none of it.

    checkpoint_ready: a file of the outputs whose appearance or change marks a set of files as whole.
    unattended: whether its machine goes on without a controller, to the job's end or its ceiling.
    """

    max_hours: float | None = Field(default=None, gt=0, le=MAX_HOURS)  # its ceiling: it is asked to end then
    checkpoint_min: float = Field(default=10.0, ge=0, le=24 * 60.0)  # minutes between checkpoints; 0: none
    checkpoint_ready: str | None = Field(default=None, min_length=1, max_length=1024)
    unattended: Literal["finish", "stop"] = "finish"
    max_resumes: int = Field(default=2, ge=0, le=10)  # machines in place of interruptible ones taken away


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
    outputs: str = Field(default="outputs", min_length=1)  # a folder in it; what lies there comes back
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
    # Where steps and not time are fixed: what a step may take on average; the leg is ended there.
    step_ceiling_sec: float = Field(default=1.0, gt=0, le=3600)


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
    steps: int | None = Field(default=None, ge=1, le=10_000_000)  # fixes the work instead
    control: Control = "none"
    payload: Literal["public", "private"] = "public"
    seed: int = Field(ge=0, lt=2**53)
    repeat: int = Field(default=0, ge=0, le=10_000)

    @model_validator(mode="after")
    def _whole(self) -> RunSpec:
        if self.workload == "project":
            self._job()
        elif (self.duration is None) == (self.steps is None):
            if self.duration is None:
                raise ValueError("give duration=SECONDS or steps=N: how long it is to train")
            raise ValueError("give exactly one of duration and steps (duration=null steps=N)")
        if self.payload == "private" and self.order != "protected-only":
            raise ValueError("payload=private discloses nothing: it needs order=protected-only")
        if self.control != "none" and self.order == "protected-only":
            raise ValueError("a control compares two arms: it cannot be order=protected-only")
        if self.model.kind == "withheld" and self.payload == "public":
            raise ValueError("a model is withheld of a private job only: give the settings of a model")
        return self

    def _job(self) -> None:
        """A project ends when its command does, and discloses nothing."""
        if self.order != "protected-only":
            raise ValueError(
                "order has a raw arm, which would lay the project open: model=project has none yet"
            )
        if self.payload != "private":
            raise ValueError("payload=public would lay the project open: a model=project is a private job")
        if self.duration is not None or self.steps is not None:
            raise ValueError("duration and steps are no part of a project, which ends when its command does")
        if self.paid and isinstance(self.model, ProjectModel) and self.model.max_hours is None:
            raise ValueError("model.max_hours is missing: on a machine that is paid for, say when to stop")

    @property
    def paid(self) -> bool:
        """Whether the provider charges money."""
        return self.provider.kind in PAID_PROVIDERS

    @property
    def workload(self) -> Workload:
        """Which kind of workload trains."""
        return self.model.workload if self.model.kind == "withheld" else self.model.kind
