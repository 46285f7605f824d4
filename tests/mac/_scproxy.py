"""macOS' own module behind `urllib.request.getproxies`: no proxy is set."""


def _get_proxies() -> dict[str, str]:
    return {}


def _get_proxy_settings() -> dict[str, object]:
    return {"exclude_simple": False, "exceptions": ()}
