"""A small sealed package, taken apart, and what opening an altered one is refused with."""

from __future__ import annotations

from pathlib import Path

from glasshouse.canonical import canonical_json
from glasshouse.errors import SealError
from glasshouse.sealing.container import TensorSpec, open_package, seal_package
from glasshouse.sealing.layout import HEADER_BYTES, TAG, Header, manifest_object, parse_manifest

KEY = bytes(range(1, 33))
OTHER_KEY = bytes(range(2, 34))
CHUNK = 256
SPECS = (
    TensorSpec("w", "bfloat16", (8, 64)),
    TensorSpec("v", "bfloat16", (64, 8)),
    TensorSpec("e", "int8", (0,)),
)
FILES = {"train.py": b"print('secret')" * 40, "conf.json": b"{}"}


class Sealed:
    """A small sealed package with every kind of object, and where each part of it lies."""

    def __init__(self, path: Path, key: bytes = KEY, fill: int = 1) -> None:
        self.path, self.key = path, key
        tensors = [(spec, bytes([fill + index]) * spec.nbytes) for index, spec in enumerate(SPECS)]
        with path.open("wb") as out:
            self.hash = seal_package(
                out, payload_key=key, files=FILES, tensors=tensors, extra={"fill": fill}, chunk_bytes=CHUNK
            )
        self.data = path.read_bytes()
        self.header = Header.parse(self.data[:HEADER_BYTES])
        table = manifest_object(self.header)
        self.first = HEADER_BYTES + table.sealed_bytes
        manifest = open_package(path, payload_key=key, manifest_hash=self.hash).manifest
        self.objects = parse_manifest(canonical_json(manifest), CHUNK).objects
        self.chunks: list[tuple[int, int]] = []  # (start, end) of every sealed chunk, in order
        start = self.first
        for item in self.objects:
            for chunk in range(item.chunks):
                end = start + item.chunk_size(chunk) + TAG
                self.chunks.append((start, end))
                start = end
        assert start == len(self.data)


def codes_of(path: Path, data: bytes, digest: str, regions: list, *, key: bytes = KEY, threads: int = 2):
    """Open `data` and return the reason codes of its refusal, None when it opened."""
    regions.clear()
    path.write_bytes(data)
    try:
        open_package(path, payload_key=key, manifest_hash=digest, threads=threads)
    except SealError as error:
        assert not any(any(region[:]) for region in regions), "plaintext is left after a refusal"
        return error.codes
    return None
