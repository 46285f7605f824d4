"""Attestation and key release: evidence, appraisal, broker.

RATS roles (RFC 9334): the runtime on the pod is the Attester (evidence.py, client.py), the
Verifier is appraise.py, the Relying Party is the key broker (broker.py, server.py, store.py).
tokens.py holds what the broker signs. tamper_suite.py attacks all of it over HTTP (stage.py).

It is software-enforced attestation on someone else's machine, not a hardware TEE: it shows what
was launched and released to, and does not detect a lying host.
"""
