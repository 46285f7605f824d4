# ruff: noqa: E501  (an expression a line)
"""What a secret looks like: the patterns that are searched for before anything is published, and removed from
what others' programs say.

`PATTERNS` may find nothing where there is none, for a finding stops a publication (records/secrets.py).
`scrub` may remove too much, so it takes wider ones besides: a whole key block, any long run of characters.
"""

from __future__ import annotations

import re
from typing import Final

from glasshouse.vendor_tokens import SIGNED_ADDRESS, TOKEN, TUNNEL, WEBHOOK

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
# Eight groups of hex, or fewer with one gap; times of day, bus addresses and C++ names are neither.
_GROUP = r"[0-9A-Fa-f]{1,4}"
_IPV6: Final = re.compile(
    rf"(?<![\w:.])(?:(?:{_GROUP}:){{7}}{_GROUP}|(?:{_GROUP}:){{1,6}}(?::{_GROUP}){{1,6}}|(?:{_GROUP}:){{2,7}}:|::(?:{_GROUP}:){{1,6}}{_GROUP}"
    rf"|::ffff:{_OCTET}(?:\.{_OCTET}){{3}})(?:%\w{{1,16}}|/\d{{1,3}})?(?![\w:])",
    re.IGNORECASE,
)  # fmt: skip
# Where a person's or a site's files lie, also alone; what every Linux has tells nothing.
_PLACES = (
    "data|datasets?|scratch|scratch\\d|nfs|lustre|gpfs|fsx|efs|beegfs|ceph|root|home|Users|Volumes|tmp|var|mnt|media|workspace"
    "|private|opt|srv|work|projects?|shared?|storage|cluster|net"
)  # fmt: skip
_SYSTEM = "dev|proc|sys|usr|etc|bin|lib|lib64|sbin|boot"
_BEFORE_PATH = r"(?:^|(?<=[\s\"'=:(,\[<>|;`]))"
# A whole host name: three labels or more, or a zone in which hosts have names. Each label is tried from where
# one can begin, and has an end, so that a text costs no more than its length.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_ZONES = "com|net|org|edu|gov|mil|io|ai|dev|cloud|local|localdomain|internal|intranet|lan|corp"
_MORE_ZONES = (  # of three labels at least: with two it may be a file's name
    "app|co|tech|xyz|info|systems|network|computer|de|at|ch|eu|uk|fr|nl|se|no|fi|dk|pl|cz|it|es|pt|us|ca|au|nz|jp|kr"
    "|cn|in|br|home|example"
)  # fmt: skip
_PUBLIC = "in-toto\\.io|(?:www\\.)?github\\.com|github\\.io|huggingface\\.co|rfc-editor\\.org|datatracker\\.ietf\\.org|json-schema\\.org|arxiv\\.org|doi\\.org"
_HOST: Final = re.compile(
    rf"(?<![\w.@%/\-])(?:https?://)?(?!(?:{_PUBLIC})(?![\w.\-]))(?:(?:{_LABEL}\.){{1,8}}(?:{_ZONES})"
    rf"|(?:{_LABEL}\.){{2,8}}(?:{_MORE_ZONES}))(?![\w\-]|\.\w)",
    re.IGNORECASE,
)

PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    (
        "private-key",
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|---- BEGIN SSH2 [A-Z ]{0,20}PRIVATE KEY ----"
            r"|PuTTY-User-Key-File-\d|AGE-SECRET-KEY-1[0-9A-Z]{20,}|minisign (?:encrypted )?secret key"
            # a KEM key on disk (sealing/grant.py, sealing/owner.py)
            r"|glasshouse-xwing-seed-v\d\s{1,8}[A-Za-z0-9_\-]{20,}"
        ),
    ),
    ("bearer-token", re.compile(r"\b(?:Bearer|Basic)\s{1,8}[A-Za-z0-9._~+/=\-]{12,}", re.IGNORECASE)),
    ("api-token", TOKEN),
    ("webhook", WEBHOOK),
    ("signed-address", SIGNED_ADDRESS),
    # Of a name, an address or a scheme only its end: looking for the beginning of each takes the square of a
    # text's length, and whoever chose the text chose that time, too.
    ("tunnel-url", TUNNEL),
    ("url-credentials", re.compile(r"(?<=[a-z0-9+.\-])://[^\s/@:]{0,256}:[^\s/@]{1,512}@", re.IGNORECASE)),
    (
        "private-path",
        re.compile(
            rf"{_BEFORE_PATH}(?:/(?:{_PLACES})(?![\w.\-])|/(?!(?:{_SYSTEM})/)[\w.\-]+/[\w.\-]|[A-Za-z]:\\|~/|\\\\\w)"
            r"|\.ssh/|\.aws/|\.kube/|\.gnupg/|file://"
        ),
    ),
    ("ip-address", re.compile(rf"(?<![\d.]){_OCTET}(?:\.{_OCTET}){{3}}(?::\d{{1,5}})?(?![\d.])")),
    ("ip-address", _IPV6),
    ("hardware-address", re.compile(r"(?<![0-9A-Fa-f:\-])(?:[0-9A-Fa-f]{2}[:\-]){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:\-])")),
    ("host-and-port", re.compile(r"(?<=[a-z0-9\-])\.[a-z0-9\-]{1,63}:\d{2,5}\b|\blocalhost:\d{2,5}\b", re.IGNORECASE)),
    ("host-name", _HOST),
    # An image by its digest looks like one: name@sha256:...
    (
        "account",
        re.compile(r"(?<=[A-Za-z0-9._%+\-])@(?!sha256:[0-9a-f]{64}\b)[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)*\b"),
    ),
    ("ssh-key", re.compile(r"\b(?:ssh-(?:rsa|ed25519|dss)|ecdsa-sha2-\w{1,40}|sk-(?:ssh|ecdsa)-\S{1,60})\s{1,4}AAAA[0-9A-Za-z+/]{20,}")),
    (
        "credential",
        re.compile(
            r"(?:(?:api|access|account|auth|private|license)[_ -]?key|secret|passwd|password|passphrase|\bpin|token"
            r"|authorization|set-cookie|credentials?)\W{0,3}[=:]\s{0,8}\S{6,}",
            re.IGNORECASE,
        ),
    ),
)  # fmt: skip
JWT: Final = re.compile(r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*")
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
