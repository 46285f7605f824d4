"""Base weights inside the package: streamed in, and trained on where they were decrypted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from glasshouse.errors import UsageError
from glasshouse.records.plan import public_spec
from glasshouse.spec import LoraModel
from glasshouse.workloads.package import Payload
from tests.specs import make_spec
from tests.workloads.conftest import load_model, session_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.train,
    # peft 0.21 asks transformers 5 by a name that transformers will drop in version 6.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
MakePayload = Callable[..., Payload]


def save(folder: Path, **changes: object) -> LoraModel:
    """Save random weights of qwen2-tiny's architecture, changed so, as save_pretrained() does."""
    import torch
    import transformers

    plain = load_model(
        "qwen2-tiny", **{key: value for key, value in changes.items() if key != "architecture"}
    )
    architecture = {**plain.architecture, **changes.get("architecture", {})}
    values = dict(architecture)
    shape = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, plain.dtype))
    model.save_pretrained(folder)
    return sealed(folder, architecture=architecture, dtype=plain.dtype)


def sealed(folder: Path, **changes: object) -> LoraModel:
    return load_model("qwen2-tiny", weights="sealed", weights_path=str(folder), **changes)


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.soak), False])
def test_the_model_trains_on_the_saved_weights(payload_of: MakePayload, tmp_path: Path, tied: bool) -> None:
    from safetensors.torch import load_file

    model = save(tmp_path, architecture={"tie_word_embeddings": tied})
    session = session_of(payload_of(model))
    stored = load_file(tmp_path / "model.safetensors")
    held = dict(session.model.get_base_model().named_parameters())
    for name, value in stored.items():
        assert value.equal(held.get(name, held.get(name.replace("_proj.", "_proj.base_layer."))).detach()), (
            name
        )
    assert ("lm_head.weight" in stored) is not tied
    session.run_unit()
    assert 5 < session.loss() < 9  # about ln(1024) before training: the rotary buffers are there, too


def test_it_computes_what_a_model_loaded_from_files_computes(payload_of: MakePayload, tmp_path: Path) -> None:
    import torch
    import transformers

    session = session_of(payload_of(save(tmp_path)))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(), session.model.disable_adapter():
        batch = session.tokens[:2]
        assert torch.equal(session.model(input_ids=batch).logits, loaded(input_ids=batch).logits)


MEASURE = """
import json, sys, threading, time
from pathlib import Path
from glasshouse.runtime import harness
from glasshouse.sealing.container import open_package

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024

small, large, small_hash, large_hash, key = sys.argv[1:]
def build(path, digest):
    package = open_package(path, payload_key=bytes.fromhex(key), manifest_hash=digest)
    return package, harness.Workload(package.files, package.tensors, "build").build("cpu")

build(small, small_hash)  # imports, allocators and thread pools are there from here on
before, peak, over = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not over.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
package, session = build(large, large_hash)
over.set()
watcher.join()
inside = 0
import ctypes
region = (ctypes.addressof(ctypes.c_char.from_buffer(package.region)), len(package.region))
for name, value in session.model.named_parameters():
    inside += value.nbytes if region[0] <= value.data_ptr() < sum(region) else 0
frozen = [value for value in session.model.parameters() if not value.requires_grad]
weights = sum(value.nbytes for value in frozen)
print(json.dumps({"weights": weights, "inside": inside, "peak": peak - before, "wiped": package.wipe(),
                  "zero": not any(bool(value.any()) for value in frozen)}))
"""


def test_weights_are_held_once(payload_of: MakePayload, tmp_path: Path) -> None:
    from glasshouse.sealing.container import fresh_payload_key, seal_package

    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    key, places, hashes = fresh_payload_key(), [], []
    for name, shape in (("small", {}), ("large", wide)):
        payload = payload_of(save(tmp_path / name, architecture=shape, dtype="bfloat16"))
        places.append(tmp_path / f"{name}.sealed")
        with places[-1].open("wb") as out:
            hashes.append(
                seal_package(
                    out, payload_key=key, files=payload.files, tensors=payload, extra={}
                )
            )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, *map(str, places), *hashes, key.hex()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["weights"] > 100e6
    # Every frozen weight lies in the package's own memory; decrypting and building took hardly more.
    assert found["inside"] == found["weights"]
    assert found["peak"] <= 1.1 * found["weights"], found["peak"] / found["weights"]
    assert found["wiped"]
    assert found["zero"]


# --- what is refused, before anything starts -----------------------------------------------------


def test_sealed_and_its_folder_go_together() -> None:
    from glasshouse import config

    for overrides in (["model.weights=sealed"], ["model.weights_path=somewhere"]):
        with pytest.raises(UsageError, match=r"model\.weights_path") as refused:
            config.load(["model=qwen2-tiny", *overrides])
        assert refused.value.exit_code == 2
    with pytest.raises(ValidationError):
        LoraModel.model_validate({**load_model("qwen2-tiny").model_dump(), "weights": "leaked"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("absent", "no .safetensors file"),
        ("empty", "cannot be mapped"),
        ("short", "its header is longer than it"),
        ("words", "its header is not of that format"),
        ("beyond", "its header is not of that format"),
        ("twice", "is in two files"),
    ],
)
def test_a_folder_of_something_else_is_one_line(
    payload_of: MakePayload, tmp_path: Path, damage: str, said: str
) -> None:
    model = save(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "short":
        path.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    elif damage == "words":
        path.write_bytes((4).to_bytes(8, "little") + b"word")
    elif damage == "beyond":
        path.write_bytes(data[:-4])
    else:
        (tmp_path / "copy.safetensors").write_bytes(data)
    with pytest.raises(UsageError) as refused:
        payload_of(model)
    assert said in refused.value.line()
    assert "model.weights_path=" in refused.value.line()


def test_weights_of_another_model_or_dtype_are_refused(payload_of: MakePayload, tmp_path: Path) -> None:
    model = save(tmp_path)
    with pytest.raises(UsageError, match="is float32"):
        payload_of(sealed(tmp_path, dtype="bfloat16"))
    with pytest.raises(UsageError, match=r"embedding 1024 x 128, not 512 x 128"):
        payload_of(sealed(tmp_path, architecture={**model.architecture, "vocab_size": 512}))


def test_the_folder_is_withheld_from_what_is_published(tmp_path: Path) -> None:
    model = save(tmp_path)
    shown = public_spec(make_spec(model=model)).model_dump_json()
    assert str(tmp_path) not in shown
    assert '"weights":"sealed"' in shown
