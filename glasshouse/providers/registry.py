"""From a provider's config to its client. A new provider adds one line here and one model in spec.py."""

from __future__ import annotations

import importlib
from typing import cast

from glasshouse import spec
from glasshouse.errors import UsageError
from glasshouse.providers.base import Provider

# kind -> module:callable that takes the config. Imported on use: each pulls in its own SSH or HTTP library.
_OPENERS = {
    "local": "glasshouse.providers.local:LocalProvider",
    "ssh": "glasshouse.providers.ssh:SshProvider",
    "runpod": "glasshouse.providers.runpod:open_runpod",
    "vastai": "glasshouse.providers.vastai:open_vastai",
}

# Where the key of each paid provider is looked for.
KEY_VARIABLES = {"runpod": "RUNPOD_API_KEY", "vastai": "VAST_API_KEY"}


def open_provider(config: spec.Provider) -> Provider:
    """Make the client of the configured provider; enter it before use. Raises UsageError: a missing key, a
    proxy in the environment that is none.
    """
    module, _, name = _OPENERS[config.kind].partition(":")
    opener = getattr(importlib.import_module(module), name)
    try:
        return cast(Provider, opener(config))
    except (ValueError, ImportError) as error:  # what httpx says of a proxy, which may hold a password
        raise UsageError(
            "the provider's client cannot use the proxy in the environment",
            field="environment",
            value="HTTPS_PROXY, ALL_PROXY",
            remedy="give http://HOST:PORT, or unset them; a SOCKS proxy needs httpx[socks]",
        ) from error
