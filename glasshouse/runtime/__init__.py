"""What runs on the pod: supervisor, custodian, trainer, sealer, and the raw leg's minder.

Standard library, cryptography, PyJWT and PyNaCl only; torch is imported by workloads, in the trainer.
"""
