"""The LoRA workload as it runs on the pod, in both arms: a causal language model and its adapter.

Self-contained: torch, transformers, peft, and the runtime's ranks. A unit is one optimiser step. The base
model comes from a transformers config with seeded random weights, from a pinned revision whose files are
checked by SHA-256, or from the package itself, in whose memory it then stays; the adapter's initial
weights come from the package. Tokens are drawn once from a seeded generator and visited in order, so both
arms see the same stream.
"""

import hashlib
import os
import pathlib

import torch
import transformers
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model

from glasshouse.runtime import ranks, state


def build(config, tensors, device):
    """Return a session; see glasshouse/runtime/session.py for what a session is."""
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return LoraSession(config, tensors, torch.device(device))


BASE = "base."  # begins the names of base weights in the package


def base_model(config, tensors, device):
    """Make or load the base model on `device`, in the configured dtype."""
    dtype = getattr(torch, config["dtype"])
    if config["weights"] == "sealed":
        return sealed_model(config, tensors, dtype).to(device)
    if config["weights"] == "pretrained":
        folder = checked_files(config)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    torch.manual_seed(config["weights_seed"])
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(shape_of(config), dtype=dtype)


def shape_of(config):
    """Return the transformers config of the architecture."""
    architecture = dict(config["architecture"])
    return transformers.AutoConfig.for_model(architecture.pop("model_type"), **architecture)


def sealed_model(config, tensors, dtype):
    """Make the model around the package's own memory: its parameters are views of it, never copies."""
    # Parameters without storage; buffers (rotary frequencies) are computed, not loaded, so they are made.
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(shape_of(config), dtype=dtype)
    state = {}
    for name, (spec, view) in tensors.items():
        if name.startswith(BASE):
            flat = torch.frombuffer(view, dtype=getattr(torch, spec.dtype))
            state[name.removeprefix(BASE)] = flat.reshape(spec.shape)
    unexpected = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    if unexpected or any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("the package's base weights do not fit the architecture")
    return model


def checked_files(config):
    """Return a folder with the pinned model, every weight file's SHA-256 compared first."""
    folder = pathlib.Path(config["model_id"])
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # noqa: PLC0415 -- only where a hub is reached

        folder = pathlib.Path(
            snapshot_download(
                config["model_id"],
                revision=config["revision"],
                allow_patterns=["config.json", "generation_config.json", "model*.safetensors*"],
            )
        )
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    expected = config["file_sha256"]
    if not weights or set(weights) - set(expected):
        raise ValueError("a weight file has no pinned digest")
    for name, digest in expected.items():
        with (folder / name).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise ValueError("a model file differs from its pinned digest")
    return folder


class LoraSession:
    """Trains a LoRA adapter; one unit is one step of one batch."""

    unit = "steps"
    steps_per_unit = 1

    def __init__(self, config, tensors, device):
        self.device = device
        self.rank, self.world = ranks.join(torch, device)
        self.config = config
        if device.type == "cuda":
            # Slots of equally many steps should end bit for bit alike, as on a processor; so the rules
            # can tell them from a leg that handed in another one's adapter.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False
        lora = LoraConfig(
            r=config["rank"],
            lora_alpha=config["alpha"],
            target_modules=list(config["target_modules"]),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        model = base_model(config, tensors, device)
        model.config.use_cache = False
        self.model = get_peft_model(model, lora)
        self.model.train()
        self.adapter = self._load_adapter(tensors)
        self.optimizer = torch.optim.AdamW(list(self.adapter.values()), lr=config["learning_rate"])
        generator = torch.Generator().manual_seed(config["data_seed"])
        shape = (config["examples"], config["max_length"])
        self.tokens = torch.randint(0, model.config.vocab_size, shape, generator=generator).to(device)
        self.steps = 0
        self.last_loss = None
        total = sum(parameter.numel() for parameter in self.model.parameters())
        trainable = sum(parameter.numel() for parameter in self.adapter.values())
        tokens = config["batch"] * config["max_length"]
        self.info = {
            "tokensPerUnit": tokens,
            "stepsPerUnit": 1,
            # Forward and the backward pass through frozen weights: 2 + 2 FLOPs a weight and token.
            "flopsPerUnit": 4 * total * tokens,
            "trainableParams": trainable,
            "totalParams": total,
            "deterministic": True,
        }

    def _load_adapter(self, tensors):
        """Put the package's initial weights into the adapter; every tensor must be used."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            # base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight -> layers.3.q_proj.lora_A
            words = name.split(".")
            layer = words[words.index("layers") + 1]
            matrix = "lora_A" if "lora_A" in words else "lora_B"
            key = f"layers.{layer}.{words[words.index(matrix) - 1]}.{matrix}"
            spec, view = tensors[key]
            values = torch.frombuffer(view, dtype=getattr(torch, spec.dtype)).reshape(spec.shape)
            with torch.no_grad():
                parameter.copy_(values)
            found[key] = parameter
        if set(found) != {name for name in tensors if not name.startswith(BASE)}:
            raise ValueError("the package's adapter does not fit the model")
        return dict(sorted(found.items()))

    def run_unit(self):
        """Train one step."""
        size = self.config["batch"]
        # Each rank takes its share of the batch, and gradients are averaged: the step is the same one.
        share = size // self.world
        mine = range(self.rank * share, (self.rank + 1) * share)
        rows = [(self.steps * size + offset) % len(self.tokens) for offset in mine]
        batch = self.tokens[rows]
        loss = self.model(input_ids=batch, labels=batch).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = loss.detach()
        if self.world > 1:
            ranks.average(torch, [*(parameter.grad for parameter in self.adapter.values()), loss])
        torch.nn.utils.clip_grad_norm_(list(self.adapter.values()), self.config["grad_clip"])
        self.optimizer.step()
        self.steps += 1
        self.last_loss = loss

    def synchronize(self):
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def loss(self):
        """Return the last step's loss; NaN before the first."""
        return float("nan") if self.last_loss is None else float(self.last_loss)

    def trainable(self):
        """Return the adapter, by canonical name."""
        return {name: parameter.detach() for name, parameter in self.adapter.items()}

    def state(self):
        """Return what training goes on from: tensors in use, and plain values."""
        return state.taken(
            torch, self.adapter, self.optimizer, self.device, steps=self.steps, loss=self.loss()
        )

    def restore(self, tensors, values):
        """Go on from such a state; ValueError for another form."""
        self.steps, self.last_loss = state.put_back(
            torch, self.adapter, self.optimizer, self.device, tensors=tensors, values=values
        )

    def given(self):
        """Return the token stream, so that both arms' are compared by digest."""
        return {"tokens": self.tokens}

    def buffers(self):
        """Return every tensor that holds data, weights or what came of them."""
        held = [self.tokens, *self.model.parameters()]
        held += [parameter.grad for parameter in self.adapter.values() if parameter.grad is not None]
        for kept in self.optimizer.state.values():
            held += [value for value in kept.values() if torch.is_tensor(value)]
        return held
