"""Workloads: what is trained. `*_pod.py` files are sealed as source and imported from memory on the pod."""
