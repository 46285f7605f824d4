"""The pod's interpreter: can it run the runtime and the workload, and on a rented machine, make it so.

Images of GPU providers bring torch for their GPUs and none of our libraries. On a rented machine, which is
destroyed afterwards, those go into a virtual environment in the pod folder that sees the image's torch, at
exactly the versions that run here. On anybody's own machine nothing is installed.
"""

from __future__ import annotations

from importlib import metadata
from typing import Final

from glasshouse.errors import RemoteError
from glasshouse.remote.pod import Pod, Result
from glasshouse.spec import RunSpec

INSTALL_SEC: Final = 900.0
RUNTIME: Final = ("cryptography", "pyjwt")
LORA: Final = ("transformers", "peft", "safetensors", "accelerate")
_CHECK: Final = (
    "import sys, jwt, torch; assert sys.version_info >= (3, 11), 'Python is older than 3.11'; "
    "from cryptography.hazmat.primitives import hpke"
)
# No kernels for this GPU, and training would fail only after everything was sealed and uploaded.
_GPU: Final = "; torch.cuda.is_available() and torch.zeros(8, device='cuda').add(1).sum().item()"
# Without pip in it: Debian's Python has no ensurepip, and the image's own pip can install into another. The
# link to the parent's packages is for images whose python3 is itself in a virtual environment.
_LINK: Final = r"""
import pathlib, site, subprocess, sys
ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
made = subprocess.run([sys.argv[1], "-I", "-c", ask], stdout=-1, text=True, check=True).stdout.strip()
lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
pathlib.Path(made, "parent.pth").write_text("\n".join(lines))
"""
_INSTALL: Final = """
set -eu
python="$1"; place="$2"; link="$3"; shift 3
"$python" -m venv --system-site-packages --without-pip "$place" >&2
"$python" -c "$link" "$place/bin/python"
"$python" -m pip --python "$place/bin/python" install --quiet --no-input --disable-pip-version-check "$@" >&2
"""


def prepare_python(pod: Pod, python: str, root: str, spec: RunSpec) -> str:
    """Return the interpreter to use on the pod, at work for `spec`. Raises RemoteError with one line."""
    lora = spec.model.kind == "lora"
    check = _CHECK + ("; import transformers, peft, accelerate" if lora else "") + _GPU
    said = _tried(pod, python, check)
    if said.exit == 0:
        return python
    if not spec.paid:
        raise _cannot(said, python, "give an interpreter (3.11 or later) with torch, cryptography>=50, pyjwt")
    wanted = [f"{name}=={metadata.version(name)}" for name in (*RUNTIME, *(LORA if lora else ()))]
    place = f"{root}/python"
    done = pod.run(["sh", "-c", _INSTALL, "sh", python, place, _LINK, *wanted], timeout=INSTALL_SEC)
    if done.exit != 0:
        raise _cannot(done, python, "give an image whose python3 has pip and may reach a package index")
    said = _tried(pod, f"{place}/bin/python", check)
    if said.exit != 0:
        raise _cannot(said, python, "give an image with Python 3.11 or later and a torch for this GPU")
    return f"{place}/bin/python"


def _tried(pod: Pod, python: str, check: str) -> Result:
    return pod.run([python, "-I", "-c", check], timeout=180)


def _cannot(said: Result, python: str, remedy: str) -> RemoteError:
    last = (said.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1][:160]
    return RemoteError(
        f"the pod's Python cannot run the job: {last}", field="provider.python", value=python, remedy=remedy
    )
