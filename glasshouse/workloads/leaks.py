"""Secrets that people leave in their folders, known by a file's name or its first bytes."""

from __future__ import annotations

import re
from typing import Final

from glasshouse.host import read_regular
from glasshouse.secret_patterns import PATTERNS, SECRET_NAME
from glasshouse.workloads.chosen import ChosenFile

MAX_READ_BYTES = 64 << 10  # a larger file is known by its name alone
_NAMES: Final = re.compile(
    r"\.env(?:\.(?!example$|sample$|template$|dist$).+)?|id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?"
    r"|.*\.(?:pem|key|p12|pfx|jks|kdbx|ppk|ovpn)|[._]netrc|\.pypirc|\.npmrc|\.pgpass|\.htpasswd"
    r"|\.git-credentials|kaggle\.json|service[-_]?account.*\.json|application_default_credentials\.json",
    re.IGNORECASE | re.DOTALL,
)
_PATHS: Final = re.compile(
    r"(?:.*/)?(?:\.aws/(?:credentials|config)|\.docker/config\.json|\.kube/config|\.ssh/.*|\.gnupg/.*"
    r"|\.config/gcloud/.*|\.(?:cache/)?huggingface/(?:token|stored_tokens))",
    re.IGNORECASE | re.DOTALL,
)
_CONTENT: Final = tuple(pattern for code, pattern in PATTERNS if code in {"private-key", "api-token"})
_CODE: Final = (".py", ".pyi", ".md", ".rst", ".ipynb")  # named after what it does: bos_token.py


def may_hold_secret(file: ChosenFile) -> bool:
    """Whether a chosen file looks like one that holds a secret; small files are read, if they can be."""
    base = file.name.rpartition("/")[2]
    if _NAMES.fullmatch(base) or _PATHS.fullmatch(file.name):
        return True
    if SECRET_NAME.match(base.partition(".")[0]) and not base.lower().endswith(_CODE):
        return True
    if file.link is not None or file.size > MAX_READ_BYTES:
        return False
    try:
        text = read_regular(file.path, MAX_READ_BYTES).decode("utf-8", "replace")
    except OSError:
        return False
    return any(pattern.search(text) for pattern in _CONTENT)
