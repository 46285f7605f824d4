"""The pod's interpreter: can it run the runtime and the workload, and on a rented machine, make it so.

Images of GPU providers bring torch for their GPUs and none of our libraries. On a rented machine, which is
destroyed afterwards, those go into a virtual environment in the pod folder that sees the image's torch: the
files of conf/pod/pins.txt, each held to a hash, so that an index can give no others. Nothing is resolved
there. On anybody's own machine nothing is installed.

The probe (pod_probe.py) asks in the order in which nothing is done in vain: what no installation can mend
(Python, torch, the GPU) comes before our libraries. Each fault has a reason code of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from glasshouse.codes import Code, known
from glasshouse.errors import RemoteError
from glasshouse.lifecycle import pod_probe
from glasshouse.paths import Workspace
from glasshouse.remote.pod import Pod, Result
from glasshouse.spec import RunSpec

INSTALL_SEC: Final = 900.0
PROBE_SEC: Final = 180.0  # importing torch from a cold disk takes its time
_MISMATCH: Final = "DO NOT MATCH THE HASHES"  # pip's words
_REMEDY: Final = {
    Code.PYTHON_UNUSABLE: "give an interpreter of Python 3.11 or later (provider.python=, or another image)",
    Code.TORCH_MISSING: "give an interpreter, or an image, whose Python has torch",
    Code.TORCH_ARCHITECTURE: "give an image whose torch was built for this GPU",
    Code.GPU_PROBE_FAILED: "try another machine, or an image whose torch fits its driver; gpu=cpu uses none",
    Code.LIBRARIES_MISSING: (
        "install cryptography>=50 pyjwt pynacl>=1.6.2; LoRA: transformers peft accelerate"
    ),
}
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
python="$1"; place="$2"; link="$3"; pins="$4"
"$python" -m venv --system-site-packages --without-pip "$place" >&2
"$python" -c "$link" "$place/bin/python"
"$python" -m pip --python "$place/bin/python" install --quiet --no-input --disable-pip-version-check \\
  --no-deps --require-hashes --only-binary :all: -r "$pins" >&2
"""


def prepare_python(pod: Pod, python: str, root: str, spec: RunSpec, *, simulated: bool = False) -> str:
    """Return the interpreter to use on the pod for `spec`. `simulated`: no GPU is behind its name.

    Raises RemoteError with a code: a key of _REMEDY, or install-failed.
    """
    lora = spec.model.kind == "lora"
    # A GPU that torch does not see means training on the processor, at the price of a GPU.
    gpu = "any" if not spec.gpu.provider_names or simulated else "must"
    words = [gpu, "jwt", *(("transformers", "peft", "accelerate") if lora else ())]
    said = _probed(pod, python, words)
    if said is None:
        return python
    if said[0] != Code.LIBRARIES_MISSING or not spec.paid:
        raise _unusable(*said, python)
    place, listed = f"{root}/python", f"{root}/pins.txt"
    pod.put(pins(lora=lora).encode(), listed)
    done = pod.run(["sh", "-c", _INSTALL, "sh", python, place, _LINK, listed], timeout=INSTALL_SEC)
    if done.exit != 0:
        altered = _MISMATCH in done.stderr.decode("utf-8", "replace")
        raise RemoteError(
            "what the pod's package index gave is not what is pinned: a file's hash differs"
            if altered
            else f"installing the pinned libraries on the pod failed: {_last_line(done)}",
            remedy="look at which index the image's pip is set to; nothing of it was installed"
            if altered
            else "give an image whose python3 has venv and pip, and may reach a package index",
            code=Code.INSTALL_FAILED,
        )
    said = _probed(pod, f"{place}/bin/python", words)
    if said is not None:
        code, detail = said
        raise _unusable(Code.INSTALL_FAILED if code == Code.LIBRARIES_MISSING else code, detail, python)
    return f"{place}/bin/python"


def pins(*, lora: bool) -> str:
    """The requirements that the pod's pip is given, each with its hashes; LoRA's only where they serve."""
    text = pins_file().read_text(encoding="utf-8")
    runtime, found, _ = text.partition("# lora\n")
    if not found or "--hash=sha256:" not in runtime:
        raise RemoteError(
            "the list of what a pod is given is not whole", field="file", value=pins_file(),
            remedy="install Glasshouse again, or run tools/pod_pins.py", code=Code.INSTALL_FAILED,
        )  # fmt: skip
    return text if lora else runtime


def pins_file() -> Path:
    """Where that list lies: it comes with the program, whatever --conf says."""
    return Workspace.find().root / "conf" / "pod" / "pins.txt"


def _probed(pod: Pod, python: str, words: list[str]) -> tuple[Code, str] | None:
    """Run the probe; None when all is there, else (code, what is wrong)."""
    source = Path(pod_probe.__file__).read_text(encoding="utf-8")
    result = pod.run([python, "-I", "-c", source, *words], timeout=PROBE_SEC)
    if result.exit == 0:
        return None
    # A status that is none of the probe's: no such interpreter, or none that parses our source, or torch took
    # it down.
    silent = Code.PYTHON_UNUSABLE if result.exit in (1, 126, 127) else Code.GPU_PROBE_FAILED
    return known(pod_probe.CODES.get(result.exit), silent), _last_line(result)


def _unusable(code: Code, detail: str, python: str) -> RemoteError:
    return RemoteError(
        f"the pod's {python} cannot run the job: {detail}",
        remedy=_REMEDY.get(code, "give another image"),
        code=code,
    )


def _last_line(said: Result) -> str:
    return (said.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1][:160]
