"""Every claim, changed to anything and signed by the event key: refused, but for a few that are named."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from glasshouse.attestation.claims import CLAIMS
from glasshouse.canonical import CanonicalError, canonical_json
from tests.attestation.test_appraise import UNCONSTRAINED, _appraise, _honest, _seal, _with

# What the policy or the clock leaves open, beside UNCONSTRAINED: a GPU's serial, a time within the window, a
# newer ABI, and the folder of claims that are changed one by one.
OPEN = {"gpu", "iat", "hardening", "hardening.landlock_abi", *UNCONSTRAINED}

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def _at(claims: dict[str, Any], name: str) -> Any:
    outer, _, inner = name.partition(".")
    return claims[outer][inner] if inner else claims[outer]


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(set(CLAIMS) - OPEN)), data=st.data())
def test_no_other_value_of_a_claim_is_accepted(name: str, data: st.DataObject) -> None:
    honest = _honest()
    good = _at(honest, name)
    near = [good.upper(), good[:-1], good + "\n", f" {good}", ""] if isinstance(good, str) else [not good, -1]
    value = data.draw(anything | st.sampled_from([str(good), [good], {"": good}, 1, 1.0, *near]))
    if type(value) is type(good) and value == good:
        return
    changed = _with(honest, name, value)
    try:
        canonical_json(changed, floats=False)
        changed = changed if name == "composite_hash" else _seal(changed)
    except CanonicalError:
        pass  # nothing that the runtime could sign
    appraisal = _appraise(changed)
    assert not appraisal.ok
    assert appraisal.codes
