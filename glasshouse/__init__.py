"""Glasshouse: train on rented GPUs under an attested lifecycle, and publish what it costs."""

__version__ = "0.1.0"
