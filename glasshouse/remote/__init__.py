"""Reaching a pod over SSH: the only package that imports fabric and paramiko."""
