"""All private keys of a machine in one file under a passphrase, and back out of it.

    locked.py over canonical JSON {"format": "glasshouse-keys-v1", "files": {NAME: base64url}}

What lies in the keys' folder goes along: private keys, out of their own passphrase, and the lists of public
ones. A ledger is no key and does not: it is published, or lies under `state`.
"""

from __future__ import annotations

import re
from pathlib import Path

from glasshouse import host, paths
from glasshouse.canonical import CanonicalError, b64u, b64u_decode, canonical_json, parse_json
from glasshouse.errors import UsageError
from glasshouse.records import keys
from glasshouse.records.locked import MAX_LOCKED, is_locked, lock, new_passphrase, unlock

FORMAT = "glasshouse-keys-v1"
_NAME = re.compile(
    r"(?:operator|broker|publisher)\.ed25519\.pem\Z|owner\.xwing\Z|owner-[0-9a-f]{16}\.pub\Z|keyring\.json\Z"
)


def back_up(place: Path) -> tuple[str, ...]:
    """Write all keys of this machine to a new file under a passphrase; return the names that are in it.

    Raises UsageError: no key yet, the file is there already, no passphrase.
    """
    found = {path.name: keys._read_private(path) for path in keys.private_files()}
    if not found:
        raise UsageError(
            "there is no key yet", field="backup", value=place, remedy="glasshouse keys --make makes them"
        )
    folder = paths.keys_dir()
    for path in (folder / "keyring.json", *sorted(folder.glob("owner-*.pub"))):
        if path.exists():
            found[path.name] = host.read_regular(path, keys.MAX_KEYRING_BYTES)
    files = {name: b64u(data) for name, data in sorted(found.items()) if _NAME.match(name)}
    data = lock(canonical_json({"format": FORMAT, "files": files}), new_passphrase("the backup"))
    keys._new_private(place, data, "backup")
    return tuple(files)


def restore(place: Path) -> tuple[str, ...]:
    """Write the keys of a backup that are missing here; return their names.

    A key that is here and is another stays: UsageError names it, and nothing is written.
    """
    try:
        data = host.read_regular(place, MAX_LOCKED, follow=True)
    except OSError as error:
        raise UsageError(
            f"cannot read the backup: {error.strerror}", field="restore", value=place, remedy="give its file"
        ) from error
    if not is_locked(data):
        raise UsageError(
            "not a backup", field="restore", value=place, remedy="give a file of glasshouse keys --backup"
        )
    files = _files(unlock(data, place.name), place)
    folder = paths.keys_dir()
    missing, other = [], []
    for name, content in files.items():
        path = folder / name
        if not path.exists():
            missing.append(name)
        elif name.endswith((".pem", ".xwing")) and keys._read_private(path) != content:
            other.append(name)
    if other:
        raise UsageError(
            f"another key is here already: {', '.join(other)}", field="restore", value=place,
            remedy="set GLASSHOUSE_HOME to an empty folder, or move the keys here away",
        )  # fmt: skip
    for name in missing:
        private = name.endswith((".pem", ".xwing"))
        content = keys._at_rest(files[name]) if private else files[name]
        keys.atomic_write(folder / name, content, mode=0o600)
    return tuple(missing)


def _files(data: bytes, place: Path) -> dict[str, bytes]:
    try:
        document = parse_json(data, max_bytes=MAX_LOCKED)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise CanonicalError("another format")
        files = {str(name): b64u_decode(text) for name, text in document["files"].items()}
        if any(_NAME.match(name) is None for name in files):
            raise CanonicalError("a name of no key")
        return files
    except (CanonicalError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "the backup holds no keys of this form", field="restore", value=place,
            remedy="give a file of glasshouse keys --backup",
        ) from error  # fmt: skip
