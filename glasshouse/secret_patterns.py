"""What a secret looks like: the patterns that are searched for before anything is published, and removed from
what others' programs say.

`PATTERNS` may find nothing where there is none, for a finding stops a publication (publishing/secrets.py).
`scrub` may remove too much, so it takes wider ones besides: a whole key block, any long run of characters.
"""

from __future__ import annotations

import re
from typing import Final

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"

PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    (
        "private-key",
        re.compile(
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----|AGE-SECRET-KEY-1[0-9A-Z]{20,}"
            r"|glasshouse-xwing-seed-v1\s+[A-Za-z0-9_\-]{20,}"  # a KEM key on disk (sealing/grant.py)
        ),
    ),
    ("bearer-token", re.compile(r"\bBearer\s+[A-Za-z0-9._~+/\-]{12,}", re.IGNORECASE)),
    (
        "api-token",
        re.compile(
            r"\b(?:rpa_[A-Za-z0-9]{16,}|hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
            r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_\-]{16,}|xox[abprs]-[A-Za-z0-9\-]{10,}"
            r"|A[KS]IA[0-9A-Z]{16}|AIza[0-9A-Za-z_\-]{30,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_\-]{30,})"
        ),
    ),
    # Of a name, an address or a scheme only its end: looking for the beginning of each takes the square of a
    # text's length, and whoever chose the text chose that time, too.
    (
        "tunnel-url",
        re.compile(
            r"(?<=[\w\-])\.(?:ngrok(?:-free)?\.(?:io|app|dev)|trycloudflare\.com|loca\.lt|serveo\.net|ts\.net"
            r"|proxy\.runpod\.net|vast\.ai|localhost\.run|lhr\.life|pinggy\.link)\b|\bssh\.runpod\.io\b",
            re.IGNORECASE,
        ),
    ),
    ("url-credentials", re.compile(r"(?<=[a-z0-9+.\-])://[^\s/@:]+:[^\s/@]+@", re.IGNORECASE)),
    (
        "private-path",
        re.compile(
            r"(?:^|[\s\"'=:(,\[])(?:/(?:root|home|Users|tmp|var|mnt|workspace|private|opt|srv)/|[A-Za-z]:\\|~/)"
            r"|\.ssh/|\.aws/|file://"
        ),
    ),
    ("ip-address", re.compile(rf"(?<![\d.]){_OCTET}(?:\.{_OCTET}){{3}}(?::\d{{1,5}})?(?![\d.])")),
    ("ip-address", re.compile(r"\[[0-9a-fA-F:]*:[0-9a-fA-F:]+\]:\d{1,5}\b")),
    ("host-and-port", re.compile(r"(?<=[a-z0-9\-])\.[a-z0-9\-]{1,63}:\d{2,5}\b", re.IGNORECASE)),
    # An image by its digest looks like one: name@sha256:...
    (
        "account",
        re.compile(r"(?<=[A-Za-z0-9._%+\-])@(?!sha256:[0-9a-f]{64}\b)[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)*\b"),
    ),
    ("ssh-key", re.compile(r"\b(?:ssh-(?:rsa|ed25519|dss)|ecdsa-sha2-\S+)\s+AAAA[0-9A-Za-z+/]{20,}")),
    (
        "credential",
        re.compile(
            r"(?:api[_-]?key|access[_-]?key|secret|passwd|password|token|authorization)\W{0,3}[=:]\s*\S{6,}",
            re.IGNORECASE,
        ),
    ),
)
JWT: Final = re.compile(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*")
SECRET_NAME: Final = re.compile(
    r"^(?:.*(?:api|access|private|secret)[_-]?key|.*passw(?:or)?d|.*passphrase|.*secret|.*[_-]token|token"
    r"|authorization|cookie|credentials?)$",
    re.IGNORECASE,
)
SECRET_VARIABLE: Final = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
# What no terminal or record needs to hold either; hosts, paths and accounts help whoever reads there.
SCRUBBED: Final = frozenset(
    {"private-key", "bearer-token", "api-token", "url-credentials", "ip-address", "ssh-key", "credential"}
)
_WIDER: Final = (
    re.compile(r"-----BEGIN[^-]*-----.*?(-----END[^-]*-----|\Z)", re.DOTALL),
    re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=\-]{6,}", re.IGNORECASE),
    re.compile(
        r"\b(api[_-]?key|token|secret|password|authorization)\b[\"']?\s*[=:]\s*[\"']?[^\s,;\"'}]+",
        re.IGNORECASE,
    ),
    re.compile(r"\bGLASSHOUSE_\w+=\S+"),
    re.compile(r"(?<![\w:/@-])[A-Za-z0-9+/_-]{64,}={0,2}(?![\w-])"),  # keys and tokens; image digests stay
    re.compile(r"(?<=://)[^/\s@]+@"),
)  # fmt: skip


def scrub(text: str) -> str:
    """Return `text` with "[removed]" where a secret or an address may stand."""
    for pattern in (*_WIDER, JWT, *(pattern for code, pattern in PATTERNS if code in SCRUBBED)):
        text = pattern.sub("[removed]", text)
    return text
