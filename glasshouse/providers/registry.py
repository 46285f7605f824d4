"""From a provider's config to its client. A new provider adds one line here and one model in spec.py."""

from __future__ import annotations

import importlib
import sys
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


# Whose hosts each key is for.
VENDORS = {"runpod": ("RunPod", "runpod.io"), "vastai": ("Vast.ai", "vast.ai")}


def open_provider(config: spec.Provider, *, rented: bool = False) -> Provider:
    """Make the client of the configured provider; enter it before use. Raises UsageError: a missing key, a
    proxy in the environment that is none, a host that is not the vendor's and that nobody said to trust.

    rented: the config is of the journal, so a machine may be there and the host has had the key: it is named,
    and what was rented is given back all the same.
    """
    if isinstance(config, spec.CloudProvider):
        _named(config, rented=rented)
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


def _named(config: spec.CloudProvider, *, rented: bool) -> None:
    """Name a host that would be sent the API key and is not its vendor's; refuse one that nobody trusts."""
    vendor, domain = VENDORS[config.kind]
    from glasshouse.providers.cloud_http import check_base_url, is_loopback  # noqa: PLC0415  (httpx)

    host = check_base_url(config.base_url).host.rstrip(".").lower()  # as the client itself reads it
    if host == domain or host.endswith(f".{domain}") or is_loopback(host):
        return
    variable = KEY_VARIABLES[config.kind]
    if not rented and (config.trust_host or "").rstrip(".").lower() != host:
        raise UsageError(
            f"the API key in {variable} would be sent to a host that is not {vendor}'s",
            field="provider.base_url",
            value=host,
            remedy=f"where it is one of yours, add provider.trust_host={host}; "
            f"GLASSHOUSE_{config.kind.upper()}_URL in the environment may have set it",
        )
    sys.stderr.write(f"note: the API key in {variable} is sent to {host}, which is not {vendor}'s\n")
