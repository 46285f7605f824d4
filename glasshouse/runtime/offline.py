"""What tells libraries that there is no network, so that they use what is there and wait for no answer.

A courtesy to them: what keeps the network away is runtime/confine.py. Most read their variables when they
are imported, so they are set before the project's code is.
"""

from __future__ import annotations

# Name, value, where its makers say so.
_OFFLINE = (
    ("HF_HUB_OFFLINE", "1", "huggingface_hub, Environment variables"),
    ("TRANSFORMERS_OFFLINE", "1", "transformers, Installation, Offline mode (before version 5)"),
    ("HF_DATASETS_OFFLINE", "1", "datasets, Load, Offline"),
    ("HF_HUB_DISABLE_TELEMETRY", "1", "huggingface_hub, Environment variables"),
    ("WANDB_MODE", "offline", "Weights & Biases, Environment variables"),
    ("NEPTUNE_MODE", "offline", "Neptune, Environment variables"),
    ("CLEARML_OFFLINE_MODE", "1", "ClearML, Environment variables"),
    ("PIP_NO_INDEX", "1", "pip, Configuration, Environment variables: --no-index"),
    ("PIP_DISABLE_PIP_VERSION_CHECK", "1", "pip, Configuration, Environment variables"),
    ("UV_OFFLINE", "1", "uv, Environment variables"),
    ("CONDA_OFFLINE", "true", "conda, Settings, Environment variables: offline"),
)
# In offline mode these still talk to a process of their own over loopback or a Unix socket.
_DISABLED = {"WANDB_MODE": "disabled", "NEPTUNE_MODE": "debug"}


def offline_environment(*, loopback: bool) -> dict[str, str]:
    """Return the environment variables that make hubs, trackers and package tools go without a network.

    `loopback`: the process has one of its own (confine.Confinement.network is "namespace"). Without it,
    trackers that need a helper process are turned off, where offline they would keep a log for later.
    """
    found = {name: value for name, value, _ in _OFFLINE}
    return found if loopback else found | _DISABLED
