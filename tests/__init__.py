"""Mirrors the package; vectors/ holds sourced test vectors."""
