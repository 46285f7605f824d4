"""Fake RunPod and Vast.ai: real HTTP, stateful, hostile on demand; their pods are real SSH servers.

Everything rented here is SIMULATED. Every answer carries `X-Glasshouse-Fake: 1`, and a client that has seen
it marks the allocation as simulated, so that no row of it can ever be published as measured.

    faults.py     what goes wrong, when, and how often
    container.py  one pod: a folder that plays the container's root, its start script, its SSH server
    state.py      the machines of one account, what they bill, every exchange
    clock.py      the time they live in: the wall clock's, or a simulated one
    service.py    the key check, the faults that both providers have, the inspection API under /_fake/
    server.py     that over HTTP       transport.py  that inside the client's process
    runpod.py     RunPod's REST API v2        vastai.py     Vast.ai's API
    __main__.py   both at once, for `make demo-cloud`
"""
