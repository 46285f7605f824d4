"""The Merkle tree of RFC 6962, section 2.1: roots, inclusion proofs, consistency proofs. Pure.

Leaves and nodes are hashed under different prefixes, so that no node passes for a leaf. Proof
verification follows RFC 9162, sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data): 32 bytes."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right): 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """Return the largest power of two smaller than `size` (at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def root(hashes: Sequence[bytes]) -> bytes:
    """Merkle tree hash of leaf hashes; of none, SHA-256 of nothing."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    # Equal to the recursion of RFC 6962: a stack of complete subtrees, folded from the right.
    stack: list[tuple[int, bytes]] = []
    for item in hashes:
        height, digest = 0, item
        while stack and stack[-1][0] == height:
            digest = node_hash(stack.pop()[1], digest)
            height += 1
        stack.append((height, digest))
    digest = stack.pop()[1]
    while stack:
        digest = node_hash(stack.pop()[1], digest)
    return digest


def inclusion_proof(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Audit path (RFC 6962, section 2.1.1) of leaf `index` in the tree over all `hashes`."""
    if not 0 <= index < len(hashes):
        raise ValueError("index outside the tree")
    if len(hashes) == 1:
        return []
    middle = _split(len(hashes))
    if index < middle:
        return [*inclusion_proof(hashes[:middle], index), root(hashes[middle:])]
    return [*inclusion_proof(hashes[middle:], index - middle), root(hashes[:middle])]


def consistency_proof(hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Proof (RFC 6962, section 2.1.2) that the first `old_size` leaves are a prefix of `hashes`."""
    if not 0 <= old_size <= len(hashes):
        raise ValueError("old size outside the tree")
    if old_size in (0, len(hashes)):
        return []
    return _subproof(old_size, hashes, whole=True)


def _subproof(old_size: int, hashes: Sequence[bytes], *, whole: bool) -> list[bytes]:
    if old_size == len(hashes):
        return [] if whole else [root(hashes)]
    middle = _split(len(hashes))
    if old_size <= middle:
        return [*_subproof(old_size, hashes[:middle], whole=whole), root(hashes[middle:])]
    return [*_subproof(old_size - middle, hashes[middle:], whole=False), root(hashes[:middle])]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> bool:
    """Whether the leaf hash stands at `index` of the tree of `size` leaves with root `expected`."""
    if not 0 <= index < size:
        return False
    node, last, digest = index, size - 1, leaf
    for item in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            digest = node_hash(item, digest)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            digest = node_hash(digest, item)
        node >>= 1
        last >>= 1
    return last == 0 and digest == expected


def verify_consistency(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether the old tree is a prefix of the new one. An empty old tree is a prefix of any."""
    if not 0 <= old_size <= new_size:
        return False
    if old_size == 0:
        return not proof and old_root == root([])
    if old_size == new_size:
        return not proof and old_root == new_root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old_digest = new_digest = path[0]
    for item in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old_digest = node_hash(item, old_digest)
            new_digest = node_hash(item, new_digest)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new_digest = node_hash(new_digest, item)
        node >>= 1
        last >>= 1
    return last == 0 and old_digest == old_root and new_digest == new_root


class Tree:
    """The tree over given leaf hashes, with its inner nodes kept: many proofs cost little more than one."""

    def __init__(self, hashes: Sequence[bytes]) -> None:
        self._hashes = tuple(hashes)
        self._kept: dict[tuple[int, int], bytes] = {}

    def root(self) -> bytes:
        """Merkle tree hash of all leaves."""
        return self._over(0, len(self._hashes)) if self._hashes else root([])

    def inclusion_proof(self, index: int) -> list[bytes]:
        """Audit path of leaf `index`, equal to the function of that name."""
        if not 0 <= index < len(self._hashes):
            raise ValueError("index outside the tree")
        low, high, path = 0, len(self._hashes), []
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self._over(middle, high))
                high = middle
            else:
                path.append(self._over(low, middle))
                low = middle
        return path[::-1]

    def _over(self, low: int, high: int) -> bytes:
        if high - low == 1:
            return self._hashes[low]
        if (low, high) not in self._kept:
            middle = low + _split(high - low)
            self._kept[low, high] = node_hash(self._over(low, middle), self._over(middle, high))
        return self._kept[low, high]
