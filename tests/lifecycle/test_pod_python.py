"""A rented image is made ready for real: probe, virtual environment, pinned install from a local index.

The image's interpreter is a virtual environment of its own, with a stand-in for torch (no CUDA is here);
pip, venv, the wheels' install and the SSH server are real. pip's own configuration on the pod says where
packages come from.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pip
import pytest

from glasshouse import spec as specs
from glasshouse.errors import RemoteError
from glasshouse.lifecycle import pod_python
from glasshouse.lifecycle.pod_python import prepare_python
from glasshouse.remote.pod import Pod
from tests.providers.cloud_kit import rented_spec
from tests.specs import make_spec

ROOT = Path(__file__).resolve().parents[2]

RUNTIME = ("cryptography", "pyjwt", "pynacl")
LORA = ("transformers", "peft", "safetensors", "accelerate")
MODULES = {
    "pyjwt": "jwt/__init__.py",
    "cryptography": "cryptography/hazmat/primitives/hpke.py",
    "pynacl": "nacl/bindings.py",
}
TEXTS = {"pynacl": "crypto_aead_aegis256_decrypt = None"}
TORCH = """
class cuda:
    @staticmethod
    def is_available():
        return {seen}

def zeros(size, device):
    raise RuntimeError({fault!r}) if {fault!r} else None
"""
WORKS = """
class cuda:
    @staticmethod
    def is_available():
        return True

class zeros:
    def __init__(self, size, device):
        self.size = size
    def add(self, one):
        return self
    def sum(self):
        return self
    def item(self):
        return float(self.size)
"""
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


class Image:
    """An image's Python: pip, and whatever modules a test puts into it."""

    def __init__(self, place: Path) -> None:
        venv.create(place, with_pip=False, symlinks=True)
        self.python = str(place / "bin/python")
        (self.site,) = place.glob("lib/python*/site-packages")
        (self.site / "pip").symlink_to(Path(pip.__file__).parent)

    def module(self, path: str, text: str = "") -> None:
        target = self.site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An image as providers have them: torch that works, none of our libraries."""
    image = Image(tmp_path_factory.mktemp("plain") / "image")
    image.module("torch/__init__.py", WORKS)
    return image


@pytest.fixture
def index(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip on the pod takes packages from, and nowhere else.

    What is pinned are the wheels that were offered first: theirs are of this test's making.
    """
    folder = Path(pod.endpoint.workdir) / "index"
    folder.mkdir()
    listed = tmp_path / "pins.txt"
    listed.write_text("# runtime\n# lora\n")
    monkeypatch.setattr(pod_python, "pins_file", lambda: listed)
    pod.put(f"[global]\nno-index = true\nfind-links = {folder}\n".encode(), ".config/pip/pip.conf")
    return folder


def offer(index: Path, name: str, version: str, *, text: str | None = None) -> None:
    """Put a wheel into the index: one module, at a version."""
    base = f"{name}-{version}"
    files = {
        MODULES.get(name, f"{name}/__init__.py"): TEXTS.get(name, "") if text is None else text,
        f"{base}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{base}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{base}.dist-info/RECORD"
    place = index / f"{base}-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        wheel.writestr(record, "".join(f"{path},,\n" for path in [*files, record]))
    pin(name, version, hashlib.sha256(place.read_bytes()).hexdigest())


def pin(name: str, version: str, digest: str) -> None:
    """List a wheel in the pins, unless its name is there."""
    listed = pod_python.pins_file()
    text = listed.read_text()
    if f"{name}==" not in text:
        line = f"{name}=={version} --hash=sha256:{digest}\n"
        after = text + line if name in LORA else text.replace("# lora\n", f"{line}# lora\n")
        listed.write_text(after)


def offer_all(index: Path, names: tuple[str, ...]) -> None:
    for name in names:
        offer(index, name, metadata.version(name))
        offer(index, name, "99.0")  # newer ones are there, and are not taken


def rented(model: specs.Model | None = None) -> specs.RunSpec:
    spec = rented_spec("runpod")
    return spec if model is None else spec.model_copy(update={"model": model})


LORA_MODEL = specs.LoraModel(
    kind="lora", name="tiny", model_id="tiny", architecture={"model_type": "qwen2"}, learning_rate=0.1
)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        pytest.param(None, RUNTIME, id="mlp"),
        # Offers the versions that are installed here: the extra `train`.
        pytest.param(LORA_MODEL, RUNTIME + LORA, id="lora", marks=pytest.mark.train),
    ],
)
def test_a_rented_image_gets_the_pinned_libraries_beside_its_torch(
    pod: Pod, index: Path, plain: Image, model: specs.Model | None, names: tuple[str, ...]
) -> None:
    offer_all(index, names)
    before = sorted(plain.site.iterdir())
    python = prepare_python(pod, plain.python, pod.endpoint.workdir, rented(model))
    assert python == f"{pod.endpoint.workdir}/python/bin/python"
    ask = (
        "import sys, torch, jwt; from importlib.metadata import version; "
        "print(torch.__file__, *map(version, sys.argv[1:]))"
    )
    torch, *versions = pod.check([python, "-I", "-c", ask, *names], "asking").decode().split()
    assert versions == [metadata.version(name) for name in names]
    assert Path(torch).is_relative_to(plain.site)
    assert sorted(plain.site.iterdir()) == before  # the image itself is as it was


def test_an_image_that_has_all_is_used_as_it_is(pod: Pod, plain: Image, tmp_path: Path) -> None:
    whole = Image(tmp_path / "whole")
    whole.module("torch/__init__.py", WORKS)
    for name, path in MODULES.items():
        whole.module(path, TEXTS.get(name, ""))
    assert prepare_python(pod, whole.python, pod.endpoint.workdir, rented()) == whole.python
    assert not pod.exists(f"{pod.endpoint.workdir}/python")


def _code(prepare: Callable[[], str]) -> tuple[str, str]:
    """The reason code and the line of what `prepare` raises; the site has words for each."""
    with pytest.raises(RemoteError) as caught:
        prepare()
    assert caught.value.code is not None
    assert f"(code={caught.value.code})" in caught.value.line()
    assert caught.value.remedy
    return caught.value.code, caught.value.line()


def test_what_cannot_be_installed_is_an_install_that_failed(pod: Pod, index: Path, plain: Image) -> None:
    offer(index, "cryptography", metadata.version("cryptography"))
    pin("pyjwt", metadata.version("pyjwt"), "0" * 64)
    code, line = _code(lambda: prepare_python(pod, plain.python, pod.endpoint.workdir, rented()))
    assert code == "install-failed"
    assert "No matching distribution found for pyjwt" in line
    offer(index, "pynacl", metadata.version("pynacl"))
    listed = pod_python.pins_file()
    offer(index, "pyjwt", metadata.version("pyjwt"), text="raise ImportError('built for another machine')")
    code, line = _code(lambda: prepare_python(pod, plain.python, pod.endpoint.workdir, rented()))
    assert code == "install-failed"
    assert "is not what is pinned: a file's hash differs" in line
    assert not pod.exists(f"{pod.endpoint.workdir}/python/lib/python3.11/site-packages/jwt")
    listed.write_text("".join(line for line in listed.read_text().splitlines(True) if "pyjwt" not in line))
    offer(index, "pyjwt", metadata.version("pyjwt"), text="raise ImportError('built for another machine')")
    code, line = _code(lambda: prepare_python(pod, plain.python, pod.endpoint.workdir, rented()))
    assert code == "install-failed"
    assert "built for another machine" in line


def test_on_a_machine_that_is_not_rented_nothing_is_installed(pod: Pod, index: Path, plain: Image) -> None:
    offer_all(index, RUNTIME)
    code, line = _code(lambda: prepare_python(pod, plain.python, pod.endpoint.workdir, make_spec()))
    assert code == "libraries-missing"
    assert "jwt is not installed" in line
    assert not pod.exists(f"{pod.endpoint.workdir}/python")


@pytest.mark.parametrize("rent", [True, False])
def test_a_pynacl_without_the_cipher_is_a_library_that_is_missing(
    pod: Pod, index: Path, tmp_path: Path, rent: bool
) -> None:
    offer_all(index, RUNTIME)
    image = Image(tmp_path / "image")
    image.module("torch/__init__.py", WORKS)
    for path in MODULES.values():
        image.module(path)
    root = pod.endpoint.workdir
    if rent:
        assert prepare_python(pod, image.python, root, rented()) == f"{root}/python/bin/python"
        return
    code, line = _code(lambda: prepare_python(pod, image.python, root, make_spec()))
    assert code == "libraries-missing"
    assert "PyNaCl is older than 1.6" in line


UNMENDABLE = {
    "none": (None, "torch-missing", "No module named 'torch'"),
    "broken": ("raise OSError('libcudart.so.13: cannot open')", "torch-missing", "libcudart.so.13"),
    "architecture": (TORCH.format(seen=True, fault=NO_KERNEL), "torch-architecture", "no kernel image"),
    "faulty": (
        TORCH.format(seen=True, fault="CUDA error: out of memory"),
        "gpu-probe-failed",
        "out of memory",
    ),
    "unseen": (TORCH.format(seen=False, fault=""), "gpu-probe-failed", "torch sees no GPU"),
    "crash": ("import os; os.abort()", "gpu-probe-failed", "Aborted"),
}


@pytest.mark.parametrize("case", UNMENDABLE)
def test_an_image_that_no_install_can_mend_is_told_apart_before_one_is_tried(
    pod: Pod, index: Path, tmp_path: Path, case: str
) -> None:
    torch, expected, words = UNMENDABLE[case]
    offer_all(index, RUNTIME)
    image = Image(tmp_path / "image")
    if torch is not None:
        image.module("torch/__init__.py", torch)
    code, line = _code(lambda: prepare_python(pod, image.python, pod.endpoint.workdir, rented()))
    assert code == expected
    assert words in line
    assert not pod.exists(f"{pod.endpoint.workdir}/python")


def test_without_a_gpu_behind_the_name_torch_may_see_none(pod: Pod, index: Path, tmp_path: Path) -> None:
    offer_all(index, RUNTIME)
    image = Image(tmp_path / "image")
    image.module("torch/__init__.py", TORCH.format(seen=False, fault=""))
    root = pod.endpoint.workdir
    assert prepare_python(pod, image.python, root, rented(), simulated=True) == f"{root}/python/bin/python"


@pytest.mark.parametrize("old", [True, False])
def test_an_interpreter_that_is_none_of_use(pod: Pod, tmp_path: Path, old: bool) -> None:
    python = tmp_path / "python2"
    if old:  # it does not even parse what it is asked
        python.write_text("#!/bin/sh\necho 'SyntaxError: invalid syntax' >&2\nexit 1\n")
        python.chmod(0o755)
    code, line = _code(lambda: prepare_python(pod, str(python), pod.endpoint.workdir, rented()))
    assert code == "python-unusable"
    assert ("SyntaxError" if old else "not found") in line


def test_what_is_pinned_is_locked_whole_and_leaves_torch_to_the_image() -> None:
    runtime, lora = pod_python.pins(lora=False), pod_python.pins(lora=True)
    assert lora.startswith(runtime)
    names = re.findall(r"^([a-z0-9-]+)==", lora, re.MULTILINE)
    assert set(RUNTIME) | {"cffi"} <= set(re.findall(r"^([a-z0-9-]+)==", runtime, re.MULTILINE))
    assert set(LORA) | {"numpy", "tokenizers", "huggingface-hub"} <= set(names)
    assert not {"torch", "triton"} & set(names)
    assert len(names) == len(set(names))
    for entry in re.split(r"\n(?=[a-z])", lora.partition("# runtime\n")[2].replace("# lora\n", "")):
        assert entry.count("--hash=sha256:") >= 1, entry


@pytest.mark.train
def test_the_pins_follow_from_the_lock() -> None:
    command = [sys.executable, ROOT / "tools/pod_pins.py", "--check"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
