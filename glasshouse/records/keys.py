"""Keys at rest and the keyring: who may sign what, from which ledger index to which.

Private keys live under `paths.keys_dir()`, mode 0600, made on first use. Public keys that a
verifier trusts come from a keyring file, never from the bundle: conf/trust/keyring.json of the
workspace is the committed one, keys_dir()/keyring.json holds this machine's own keys, shown as `local`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from glasshouse import host, paths
from glasshouse.canonical import CanonicalError, b64u, b64u_decode, canonical_json, parse_json, sha256_hex
from glasshouse.codes import Code
from glasshouse.errors import UsageError, VerificationError
from glasshouse.paths import Workspace
from glasshouse.records.key_labels import require_label
from glasshouse.records.locked import is_locked, known_passphrase, lock, unlock

if TYPE_CHECKING:
    from glasshouse.sealing.grant import KemKey

Role = Literal["operator", "broker", "publisher", "witness"]
ROLES: tuple[str, ...] = get_args(Role)
MAX_KEY_FILE = 64 << 10
MAX_OWNERS = 8
MAX_KEYRING_BYTES = 1 << 20


def keyid(public: bytes) -> str:
    """Name a key: SHA-256 of the raw 32-byte Ed25519 public key, in hex."""
    return sha256_hex(public)


def public_bytes(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """Raw 32-byte Ed25519 public key (RFC 8032)."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


# --- private keys ---------------------------------------------------------------------------


def operator_key() -> Ed25519PrivateKey:
    """The key that signs plans, event heads and bundles; made on first use and listed as local."""
    return _signing_key("operator")


def broker_key() -> Ed25519PrivateKey:
    """The key broker's signing key: challenges, attestation results and grants."""
    return _signing_key("broker")


def publisher_key() -> Ed25519PrivateKey:
    """The key that signs published artifacts and ledger checkpoints."""
    return _signing_key("publisher")


def rotate(role: Role, index: int) -> tuple[KeyEntry, KeyEntry]:
    """Give this machine another operator or broker key; return (the retired one, the new one).

    `index` is the ledger's next: the old key stays listed for what lies before it, the new one is valid from
    it on. With an empty ledger the old key has signed no record, and is no longer listed. The old private key
    is gone. Raises UsageError for the publisher's, which is the name of its log.
    """
    if role not in ("operator", "broker"):
        raise UsageError(
            "this key is not rotated", field="role", value=role, remedy="give operator or broker"
        )
    old = public_bytes(_signing_key(role))
    new = Ed25519PrivateKey.generate()
    with _locked(paths.keys_dir() / ".keyring.lock"):
        ring = local_keyring()
        retired = replace(ring.find(keyid(old), role), valid_until=max(index - 1, 0))
        added = KeyEntry(
            keyid(public_bytes(new)), role, public_bytes(new), f"{role} of this machine", index, local=True
        )
        kept = [item for item in ring.entries if (item.keyid, item.role) != (retired.keyid, role)]
        entries = [*kept, *([retired] if index else []), added]
        # First the list: a power cut in between leaves a key that is retired, not one that is still trusted.
        document = {"keys": [item.as_json() for item in entries]}
        atomic_write(paths.keys_dir() / "keyring.json", canonical_json(document), mode=0o600)
        atomic_write(paths.keys_dir() / f"{role}.ed25519.pem", _at_rest(_pem(new)), mode=0o600)
    return retired, added


def owner_key() -> KemKey:
    """The owner's X-Wing key: outputs of protected legs are sealed to it."""
    from glasshouse.sealing import grant  # noqa: PLC0415  (HPKE is loaded only where outputs are opened)

    made = _private_file("owner.xwing", lambda: grant.kem_key_text(grant.generate_kem_key()))
    return grant.parse_kem_key(made)


def make_all() -> None:
    """Make whichever of this machine's keys are missing."""
    operator_key()
    broker_key()
    publisher_key()
    owner_key()


def owner_publics() -> tuple[bytes, ...]:
    """The owner's public keys (X-Wing), to each of which is sealed what is theirs; any of them opens it.

    The first is this machine's own; of the others only the public halves lie here (`add_owner`).
    """
    from glasshouse.sealing import grant  # noqa: PLC0415

    found = [grant.kem_public_bytes(owner_key())]
    for path in sorted(paths.keys_dir().glob("owner-*.pub")):
        try:
            public = b64u_decode(
                host.read_regular(path, MAX_KEY_FILE).decode("ascii").strip(), size=grant.PUBLIC_BYTES
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                "not a public key of the owner's", field="key", value=path,
                remedy="remove it, and add the key again: glasshouse keys --add-owner",
            ) from error  # fmt: skip
        _require_own(path)
        found.append(public)
    return tuple(dict.fromkeys(found))


def add_owner(place: Path) -> str:
    """Make another owner's key in the file `place`, and keep its public half here; return its id (16 hex).

    What is sealed from then on opens with it too, so it belongs where this machine is not. It is under the
    same passphrase as the keys here. Raises UsageError where the file is there, or for more keys than can be.
    """
    from glasshouse.sealing import grant  # noqa: PLC0415

    if len(owner_publics()) >= MAX_OWNERS:
        raise UsageError(
            f"an owner has {MAX_OWNERS} keys at most", field="add-owner", value=place,
            remedy=f"remove an owner-*.pub in {paths.keys_dir()} whose key is lost",
        )  # fmt: skip
    key = grant.generate_kem_key()
    public = grant.kem_public_bytes(key)
    name = sha256_hex(public)[:16]
    _new_private(place, _at_rest(grant.kem_key_text(key)), "add-owner")
    atomic_write(paths.keys_dir() / f"owner-{name}.pub", b64u(public).encode() + b"\n", mode=0o600)
    return name


def owner_keys(given: Path | None = None) -> tuple[KemKey, ...]:
    """The owner's private keys that can be had: of the file `given`, else this machine's."""
    from glasshouse.sealing import grant  # noqa: PLC0415

    if given is None:
        return (owner_key(),)
    return (grant.parse_kem_key(_read_private(given)),)


def private_files() -> tuple[Path, ...]:
    """The files here that hold private keys."""
    folder = paths.keys_dir()
    return tuple(sorted([*folder.glob("*.ed25519.pem"), *folder.glob("*.xwing")]))


def relock(passphrase: bytes | None) -> tuple[str, ...]:
    """Put every private key here under a passphrase, or under none; return the names of those changed."""
    changed = []
    with _locked(paths.keys_dir() / ".keyring.lock"):
        opened = [(path, _read_private(path)) for path in private_files()]  # all of them, or none is changed
        for path, plain in opened:
            atomic_write(path, plain if passphrase is None else lock(plain, passphrase), mode=0o600)
            changed.append(path.name)
    return tuple(changed)


def _at_rest(data: bytes) -> bytes:
    """A new private key as it is written: under the passphrase of the others here, if they have one."""
    others = [path for path in private_files() if is_locked(host.read_regular(path, MAX_KEY_FILE))]
    if not others:
        return data
    _read_private(others[0])  # the passphrase is theirs, or nothing is written
    return lock(data, known_passphrase(others[0].name))


def _new_private(path: Path, data: bytes, field: str) -> None:
    """Write a private file that was not there before, whole."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"cannot make the file: {error.strerror}", field=field, value=path,
            remedy="give a file that is not there yet, in a folder that is",
        ) from error  # fmt: skip
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        host.sync(file.fileno())


def _signing_key(role: Role) -> Ed25519PrivateKey:
    name = f"{role}.ed25519.pem"
    try:
        pem = _private_file(name, lambda: _pem(Ed25519PrivateKey.generate()))
        key = serialization.load_pem_private_key(pem, password=None)
    except ValueError as error:
        raise UsageError("key file is not a PEM private key", field="key", value=name) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("key file does not hold an Ed25519 key", field="key", value=name)
    _list_local(role, public_bytes(key))
    return key


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _private_file(name: str, make: Callable[[], bytes]) -> bytes:
    """Read a private file, creating it with `make` when absent; two processes agree on one."""
    path = paths.keys_dir() / name
    if not path.exists():
        _link_new(path, lambda temporary: atomic_write(temporary, _at_rest(make()), mode=0o600))
    return _read_private(path)


def _require_own(path: Path) -> None:
    """Refuse a file of the keys' folder that another user owns or writes to."""
    found = path.stat(follow_symlinks=False)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UsageError(
            "others can write to it", field="key", value=path,
            remedy="look whether it is yours, then chmod 600 and chown it",
        )  # fmt: skip


def _read_private(path: Path) -> bytes:
    """What a private key's file holds, out of its passphrase where it is under one."""
    return unlock(_raw_private(path), path.name)


def _raw_private(path: Path) -> bytes:
    name = path.name
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
            raise UsageError(
                "key file is readable by others",
                field="key",
                value=name,
                remedy="chmod 600 it, or replace the key",
            )
        if found.st_uid != os.geteuid():
            raise UsageError("key file belongs to another user", field="key", value=name)
        return file.read(MAX_KEY_FILE)


def _link_new(path: Path, write: Callable[[Path], None]) -> None:
    # link() fails when the name exists, so of two processes one wins and both read the winner's key.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- keyring --------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyEntry:
    """One trusted public key. `valid_from` and `valid_until` are ledger indexes, both inclusive."""

    keyid: str
    role: str
    public: bytes
    label: str
    valid_from: int | None = None
    valid_until: int | None = None
    local: bool = False

    @property
    def name(self) -> str:
        """How a signer is shown: label, and whether only this machine lists it."""
        return f"{'local: ' if self.local else ''}{self.label} ({self.keyid[:16]})"

    @property
    def machine(self) -> str:
        """The label without the role that `listed_as` puts behind it."""
        return self.label.removesuffix(f", {self.role}")

    def check(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` (64 bytes) is this key's over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def _until(self, index: int) -> KeyEntry:
        """The same, trusted up to that ledger index at most."""
        return replace(self, valid_until=index if self.valid_until is None else min(self.valid_until, index))

    def as_json(self) -> dict[str, Any]:
        """Return the entry in the keyring file's form."""
        return {
            "keyid": self.keyid,
            "role": self.role,
            "publicKey": b64u(self.public),
            "label": self.label,
            "validFrom": self.valid_from,
            "validUntil": self.valid_until,
            "local": self.local,
        }


@dataclass(frozen=True)
class Keyring:
    """The keys a verifier trusts; a key may be listed once per role."""

    entries: tuple[KeyEntry, ...] = field(default=())

    def find(self, key: str, role: str, *, index: int | None = None) -> KeyEntry:
        """Return the entry for a keyid in a role.

        Raises VerificationError: signer-unknown, signer-role, signer-retired.
        """
        named = [entry for entry in self.entries if entry.keyid == key]
        if not named:
            raise VerificationError(
                f"the keyring does not list the {role} key {key[:16]}",
                codes=[Code.SIGNER_UNKNOWN],
                remedy="give the signer's keyring with --keys FILE",
            )
        entries = [entry for entry in named if entry.role == role]
        if not entries:
            raise VerificationError(f"key {key[:16]} is not listed as {role}", codes=[Code.SIGNER_ROLE])
        for entry in entries:
            low = entry.valid_from if entry.valid_from is not None else 0
            high = entry.valid_until
            if index is None or (low <= index and (high is None or index <= high)):
                return entry
        raise VerificationError(
            f"{role} key {key[:16]} is not valid at ledger index {index}", codes=[Code.SIGNER_RETIRED]
        )

    def with_role(self, role: str, *, index: int | None = None) -> tuple[KeyEntry, ...]:
        """All entries of a role that are valid at a ledger index (None: at any)."""
        found = []
        for entry in self.entries:
            with contextlib.suppress(VerificationError):
                if entry.role == role and self.find(entry.keyid, role, index=index) is entry:
                    found.append(entry)
        return tuple(found)

    def as_bytes(self) -> bytes:
        """The keyring file."""
        return canonical_json({"keys": [entry.as_json() for entry in self.entries]})

    def without(self, retired: Mapping[tuple[str, str], int]) -> Keyring:
        """The same, less what was retired: (key id, role) to the first ledger index it does not sign for."""
        return Keyring(
            tuple(
                entry._until(retired[entry.keyid, entry.role] - 1)
                if (entry.keyid, entry.role) in retired
                else entry
                for entry in self.entries
            )
        )

    @property
    def _ends(self) -> dict[tuple[str, str], int]:
        """The first ledger index for which each key that has an end is not trusted."""
        ends: dict[tuple[str, str], int] = {}
        for entry in self.entries:
            if entry.valid_until is not None:
                name, end = (entry.keyid, entry.role), entry.valid_until + 1
                ends[name] = min(end, ends.get(name, end))
        return ends

    def __add__(self, other: Keyring) -> Keyring:
        """What either lists; a key that one of them retired is retired."""
        one, two = self.without(other._ends), other.without(self._ends)
        return Keyring(one.entries + tuple(entry for entry in two.entries if entry not in one.entries))


def parse_keyring(data: bytes, *, local: bool = False) -> Keyring:
    """Parse a keyring file strictly; `local` marks every key as listed by this machine only.

    Raises VerificationError(keyring-malformed).
    """
    try:
        document = parse_json(data)
        if (
            not isinstance(document, dict)
            or set(document) != {"keys"}
            or not isinstance(document["keys"], list)
        ):
            raise CanonicalError('a keyring is {"keys": [...]}')
        return Keyring(tuple(_entry(item, local) for item in document["keys"]))
    except CanonicalError as error:
        raise VerificationError(f"keyring: {error}", codes=[Code.KEYRING_MALFORMED]) from error


def _entry(item: Any, local: bool) -> KeyEntry:
    names = {"keyid", "role", "publicKey", "label", "validFrom", "validUntil", "local"}
    if not isinstance(item, dict) or set(item) != names:
        raise CanonicalError("an entry has exactly " + ", ".join(sorted(names)))
    public = b64u_decode(item["publicKey"], size=32)
    bounds = (item["validFrom"], item["validUntil"])
    if any(bound is not None and (type(bound) is not int or bound < 0) for bound in bounds):
        raise CanonicalError("validFrom and validUntil are ledger indexes or null")
    if item["role"] not in ROLES or type(item["local"]) is not bool:
        raise CanonicalError("unknown role, or local is not true or false")
    if not isinstance(item["label"], str) or not 0 < len(item["label"]) <= 100:
        raise CanonicalError("label is 1 to 100 characters")
    if item["keyid"] != keyid(public):
        raise CanonicalError("keyid is not the digest of publicKey")
    return KeyEntry(item["keyid"], item["role"], public, item["label"], *bounds, local=local or item["local"])


def load_keyring(path: Path | None = None, *, workspace: Workspace | None = None) -> Keyring:
    """Load the keyring at `path`, or by default the committed one plus this machine's own keys.

    workspace: whose committed keyring; None takes the one that belongs to this program.
    """
    if path is not None:
        remedy = "give a file that `glasshouse keys --json` printed"
        try:
            return parse_keyring(host.read_regular(path, MAX_KEYRING_BYTES, follow=True))
        except OSError as error:
            raise UsageError(
                f"keyring cannot be read: {error.strerror}", field="keys", value=path, remedy=remedy
            ) from error
        except VerificationError as error:
            raise UsageError("not a keyring file", field="keys", value=path, remedy=remedy) from error
    return committed_keyring((workspace or Workspace.find()).keyring) + local_keyring()


def committed_keyring(path: Path) -> Keyring:
    """The keyring that comes with the program or the publication; empty where the file is not there."""
    return parse_keyring(_trusted_bytes(path, own=False)) if path.exists() else Keyring()


def local_keyring() -> Keyring:
    """This machine's own keys, each marked local."""
    path = paths.keys_dir() / "keyring.json"
    return parse_keyring(_trusted_bytes(path, own=True), local=True) if path.exists() else Keyring()


def _trusted_bytes(path: Path, *, own: bool) -> bytes:
    """Read a keyring that decides whom to trust; UsageError where somebody else could have written it.

    own: this machine's own, which is its user's and nobody else writes. The committed one belongs to whoever
    the program's files belong to, or to root: who may change those needs no keyring.
    """
    try:
        data = host.read_regular(path, MAX_KEYRING_BYTES)
        found = path.stat(follow_symlinks=False)
    except OSError as error:
        raise UsageError(
            f"keyring cannot be read: {error.strerror}", field="keyring", value=path,
            remedy="it has to be a regular file, and no link",
        ) from error  # fmt: skip
    owners = {os.geteuid()} if own else {os.geteuid(), 0, paths.PACKAGE.stat().st_uid}
    if found.st_uid not in owners:
        raise UsageError(
            f"the keyring belongs to another user (uid {found.st_uid})", field="keyring", value=path,
            remedy="look at what it lists, and make it yours: chown",
        )  # fmt: skip
    if found.st_mode & (0o022 if own else 0o002):
        raise UsageError(
            "others can write to the keyring", field="keyring", value=path,
            remedy=f"look at what it lists, then chmod {'600' if own else 'o-w'} it",
        )  # fmt: skip
    return data


def listed_as(ring: Keyring, entries: Iterable[KeyEntry], label: str, *, until: int | None = None) -> Keyring:
    """`ring` and those of `entries` that it lacks, under a label and no longer local.

    until: the last ledger index for which they are trusted; one that is listed up to an earlier index is
    trusted up to this one. Without it each is trusted as far as `entries` say, those that `ring` lists too.
    Raises UsageError for a label that is none, or that a reader takes for another machine's.
    """
    entries = tuple(entries)
    offered = {(entry.keyid, entry.role) for entry in entries}
    others = [entry for entry in ring.entries if (entry.keyid, entry.role) not in offered]
    require_label(label, "trust", [entry.machine for entry in others])
    listed = {(entry.keyid, entry.role) for entry in ring.entries}
    kept = [
        replace(entry, valid_until=max(entry.valid_until, until))
        if until is not None and entry.valid_until is not None and (entry.keyid, entry.role) in offered
        else entry
        for entry in (ring.without(Keyring(entries)._ends) if until is None else ring).entries
    ]
    added = [
        replace(
            entry,
            label=f"{label}, {entry.role}",
            local=False,
            valid_until=entry.valid_until if until is None else until,
        )
        for entry in entries
        if (entry.keyid, entry.role) not in listed
    ]
    return Keyring((*kept, *added))


def _list_local(role: Role, public: bytes) -> None:
    entry = KeyEntry(keyid(public), role, public, f"{role} of this machine", local=True)

    def listed(ring: Keyring) -> bool:
        return any((item.keyid, item.role) == (entry.keyid, role) for item in ring.entries)

    if listed(local_keyring()):
        return
    with _locked(paths.keys_dir() / ".keyring.lock"):
        ring = local_keyring()
        if listed(ring):
            return
        document = {"keys": [item.as_json() for item in (*ring.entries, entry)]}
        atomic_write(paths.keys_dir() / "keyring.json", canonical_json(document), mode=0o600)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old bytes or the new, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            host.sync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        host.sync(descriptor)
    finally:
        os.close(descriptor)
