"""Sealing: the encrypted package, the wrapped key, the sealed outputs.

Reading order: layout (bytes on disk), memory (where plaintext may live), aegis (the cipher), keys, packing
(seal), container (open, and the names others import), grant (HPKE), outputs (for the owner). All of it is
part of the archive that runs on the pod: standard library, cryptography and PyNaCl.
"""
