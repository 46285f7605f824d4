from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.records import merkle

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "rfc6962.json").read_text(encoding="utf-8"))
LEAVES = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(item) for item in VECTORS["roots"]]


def proof(vector: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(item) for item in vector["proof"]]


@pytest.mark.parametrize("size", range(9))
def test_roots(size: int) -> None:
    assert merkle.root(LEAVES[:size]) == ROOTS[size]


@pytest.mark.parametrize("vector", VECTORS["inclusion"])
def test_inclusion_vectors(vector: dict[str, Any]) -> None:
    index, size = vector["index"], vector["size"]
    assert merkle.inclusion_proof(LEAVES[:size], index) == proof(vector)
    assert merkle.verify_inclusion(LEAVES[index], index, size, proof(vector), ROOTS[size])


@pytest.mark.parametrize("vector", VECTORS["consistency"])
def test_consistency_vectors(vector: dict[str, Any]) -> None:
    old, new = vector["old"], vector["new"]
    assert merkle.consistency_proof(LEAVES[:new], old) == proof(vector)
    assert merkle.verify_consistency(old, new, ROOTS[old], ROOTS[new], proof(vector))


def tree(size: int) -> list[bytes]:
    return [merkle.leaf_hash(item.to_bytes(2, "big")) for item in range(size)]


@pytest.mark.parametrize("size", range(1, 18))
def test_every_inclusion_proof_verifies_and_no_other_does(size: int) -> None:
    hashes, top = tree(size), merkle.root(tree(size))
    for index in range(size):
        path = merkle.inclusion_proof(hashes, index)
        assert merkle.verify_inclusion(hashes[index], index, size, path, top)
        assert not merkle.verify_inclusion(merkle.leaf_hash(b"x"), index, size, path, top)
        assert not merkle.verify_inclusion(hashes[index], index, size, [*path, top], top)
        for other in range(-1, size + 1):
            if other != index:
                assert not merkle.verify_inclusion(hashes[index], other, size, path, top)
        for place in range(len(path)):
            assert not merkle.verify_inclusion(
                hashes[index], index, size, path[:place] + path[place + 1 :], top
            )
            swapped = [*path[:place], bytes(32), *path[place + 1 :]]
            assert not merkle.verify_inclusion(hashes[index], index, size, swapped, top)


@pytest.mark.parametrize("new", range(1, 18))
def test_every_consistency_proof_verifies_and_no_other_does(new: int) -> None:
    hashes, top = tree(new), merkle.root(tree(new))
    for old in range(new + 1):
        before, path = merkle.root(hashes[:old]), merkle.consistency_proof(hashes, old)
        assert merkle.verify_consistency(old, new, before, top, path)
        assert not merkle.verify_consistency(old, new, bytes(32), top, path)
        assert not merkle.verify_consistency(old, new, before, top, [*path, bytes(32)])
        if old:
            assert not merkle.verify_consistency(old, new, before, bytes(32), path)
        for place in range(len(path)):
            swapped = [*path[:place], bytes(32), *path[place + 1 :]]
            assert not merkle.verify_consistency(old, new, before, top, swapped)
    assert not merkle.verify_consistency(new + 1, new, top, top, [])


@given(st.integers(1, 200), st.data())
def test_larger_trees(new: int, data: st.DataObject) -> None:
    old, index = data.draw(st.integers(0, new)), data.draw(st.integers(0, new - 1))
    hashes = tree(new)
    top = merkle.root(hashes)
    assert merkle.verify_consistency(
        old, new, merkle.root(hashes[:old]), top, merkle.consistency_proof(hashes, old)
    )
    assert merkle.verify_inclusion(hashes[index], index, new, merkle.inclusion_proof(hashes, index), top)


def test_leaves_and_nodes_cannot_be_confused() -> None:
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)


def test_proofs_outside_the_tree_are_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        merkle.inclusion_proof(tree(3), 3)
    with pytest.raises(ValueError, match="outside"):
        merkle.consistency_proof(tree(3), 4)
