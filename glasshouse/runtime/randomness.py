"""The random states of a process that no session need name: torch's, Python's, numpy's; taken and put back.

A class that draws from them without saying so in its `state()` would otherwise go on elsewhere after a
warm-up that was undone, or a checkpoint. They are JSON, so that no pickle is needed: text in base64url and
numbers, some ten KiB in all. torch and numpy are looked at where something has imported them, the generators
of GPUs where torch has opened CUDA.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Mapping
from typing import Any

from glasshouse.canonical import b64u, b64u_decode

MAX_DEVICES = 64
_PYTHON = struct.Struct("<625I")  # random.getstate(), version 3: the Mersenne Twister's words, and its place
_NUMPY = struct.Struct("<624I")


def taken() -> dict[str, Any]:
    """How they stand now, as JSON values by where they come from."""
    version, words, gauss = random.getstate()
    found: dict[str, Any] = {"python": [version, b64u(_PYTHON.pack(*words)), gauss]}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        name, words, place, has_gauss, cached = numpy.random.get_state()
        if name == "MT19937":  # another bit generator was set: whoever did it names its state
            text = b64u(_NUMPY.pack(*map(int, words)))
            found["numpy"] = [text, int(place), int(has_gauss), float(cached)]
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        found["torch"] = b64u(bytes(torch.get_rng_state().tolist()))
        if torch.cuda.is_initialized():
            count = min(torch.cuda.device_count(), MAX_DEVICES)
            states = (torch.cuda.get_rng_state(device) for device in range(count))
            found["cuda"] = [b64u(bytes(state.tolist())) for state in states]
    return found


def put_back(states: Mapping[str, Any]) -> None:
    """Make them what `taken` returned. Raises ValueError for another form.

    What is not there any more, or not yet, is left out: a GPU that this machine lacks, a numpy that nothing
    imported.
    """
    try:
        version, words, gauss = states["python"]
        if version != 3:
            raise ValueError("another version")
        random.setstate((version, _PYTHON.unpack(b64u_decode(words)), gauss))
        numpy: Any = sys.modules.get("numpy")
        if "numpy" in states and numpy is not None:
            text, place, has_gauss, cached = states["numpy"]
            if not 0 <= place <= 624:
                raise ValueError("its place is none")
            words = numpy.array(_NUMPY.unpack(b64u_decode(text)), dtype=numpy.uint32)
            numpy.random.set_state(("MT19937", words, place, has_gauss, cached))
        torch: Any = sys.modules.get("torch")
        if "torch" in states and torch is not None:
            torch.set_rng_state(_tensor(torch, states["torch"]))
            if "cuda" in states and torch.cuda.is_initialized():
                for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
                    torch.cuda.set_rng_state(_tensor(torch, state), device)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, struct.error) as error:
        raise ValueError(f"random states of another form: {type(error).__name__}") from error


def _tensor(torch: Any, text: str) -> Any:
    return torch.tensor(list(b64u_decode(text)), dtype=torch.uint8, device="cpu")
