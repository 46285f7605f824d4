"""Fetch a published row with its evidence into a folder, so that `verify` can look at it like a local one.

What is fetched is untrusted: sizes, counts, names and redirects are bounded, and nothing is believed
before it is verified from the folder.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from glasshouse.canonical import CanonicalError, canonical_json, parse_json
from glasshouse.cutting import Cutter
from glasshouse.errors import GlasshouseError, RemoteError, UsageError
from glasshouse.providers.cloud_http import is_loopback
from glasshouse.publishing.artifact import artifact_bytes, parse_artifact
from glasshouse.publishing.logs_beside import LOG_FOLDERS
from glasshouse.publishing.published_log import CHECKPOINT, LEAVES
from glasshouse.records.bundle import ENVELOPE, MAX_BUNDLE_BYTES, MAX_FILE_BYTES, MAX_FILES, NAME
from glasshouse.records.keys import Keyring
from glasshouse.records.ledger import log_key

ROW_URL = re.compile(r"(?P<site>.*/)research/artifacts/(?P<id>[a-z0-9][a-z0-9.\-]{0,150})\.json\Z")
TIMEOUT_SEC = 30.0  # without a byte
MAX_ROWS_BYTES = 64 << 20
MAX_CONTROLS = 32  # of one row
MAX_LOGS_BYTES = 64 << 20  # of all logs together


def is_url(path: str) -> bool:
    """Whether a PATH argument is a URL."""
    return path.startswith(("https://", "http://"))


def fetch_row(url: str, folder: Path, keyring: Keyring, budget: Budget | None = None) -> Path:
    """Fetch the artifact at `url`, its bundle, ledger entry and neighbours; return its file in `folder`.

    The site's logs come along whole, of each publisher that the keyring lists: only they can tell whether a
    row was registered in time, and what has been said of it since.
    Raises UsageError for a URL that is no row of a site, RemoteError when it cannot be fetched.
    """
    match = ROW_URL.match(url)
    parsed = _parsed(url)
    if match is None or parsed is None or parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError(
            "not a row of a site",
            field="url",
            value=url,
            remedy="give https://.../research/artifacts/<id>.json",
        )
    if parsed.scheme != "https" and not is_loopback(parsed.host):
        raise UsageError("http can be altered on its way", field="url", value=url, remedy="use https")
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    with httpx.Client(timeout=TIMEOUT_SEC, follow_redirects=False) as client:
        site = _Site(client, match["site"], budget or Budget())
        # Neighbours first: a control published beside a row decides some of its caveats.
        _write_rows(site.get("downloads/rows.json", MAX_ROWS_BYTES, needed=False), artifacts)
        path = artifacts / f"{match['id']}.json"
        path.write_bytes(site.get(f"research/artifacts/{match['id']}.json", MAX_FILE_BYTES))
        inclusion = site.get(f"research/inclusion/{match['id']}.json", MAX_FILE_BYTES, needed=False)
        if inclusion:
            (folder / "inclusion").mkdir()
            (folder / "inclusion" / f"{match['id']}.json").write_bytes(inclusion)
        _fetch_logs(site, keyring, folder)
        for row in (match["id"], *_named_controls(path)):
            _fetch_bundle(site, f"research/bundles/{row}/", folder / "bundles" / row)
    return path


def _parsed(url: str) -> httpx.URL | None:
    """The URL, or None where it is none: what a host may be called, only its encoding knows."""
    try:
        parsed = httpx.URL(url)
        known = 0 <= (parsed.port or 0) < 1 << 16 and bool(
            parsed.host
        )  # read, since its encoding is checked then
    except (httpx.InvalidURL, ValueError):  # UnicodeError, of IDNA, is one
        return None
    return parsed if known else None


@dataclass(frozen=True)
class Budget:
    """What fetching one row may take in all: a site that drips, or that never ends, holds nobody up."""

    seconds: float = 900.0
    total_bytes: int = 1 << 30


class _Site:
    """One site from which a row is fetched, within one budget of time and bytes."""

    def __init__(self, client: httpx.Client, base: str, budget: Budget) -> None:
        self._client, self._base, self._budget = client, base, budget
        self._end = time.monotonic() + budget.seconds
        self._left = budget.total_bytes
        self._cutter = Cutter()

    def get(self, path: str, limit: int, *, needed: bool = True) -> bytes:
        """Return a body of at most `limit` bytes; with needed=False b"" where there is none."""
        url = self._base + path
        try:
            with (
                self._cutter.after(max(0.0, self._end - time.monotonic())) as cut,
                self._client.stream("GET", url, extensions={"trace": self._cutter.trace}) as answer,
            ):
                if answer.status_code == 404 and not needed:
                    return b""
                if answer.status_code != 200:
                    raise RemoteError(
                        f"the site answered {answer.status_code}",
                        field="url",
                        value=url,
                        remedy="check the address",
                    )
                data = bytearray()
                for part in answer.iter_bytes():
                    data += part
                    if len(data) > min(limit, self._left):
                        raise RemoteError("the answer is too large", field="url", value=url)
                    if time.monotonic() > self._end:
                        break
                if cut.is_set() or time.monotonic() > self._end:
                    raise self._slow(url)
                self._left -= len(data)
                return bytes(data)
        except httpx.HTTPError as error:
            if time.monotonic() > self._end:
                raise self._slow(url) from error
            raise RemoteError(
                f"cannot be fetched ({type(error).__name__})",
                field="url",
                value=url,
                remedy="check address and network",
            ) from error

    def _slow(self, url: str) -> RemoteError:
        return RemoteError(
            f"the site took more than {self._budget.seconds:.0f} s in all",
            field="url",
            value=url,
            remedy="try again, or clone its repository and verify there",
        )


def _named_controls(path: Path) -> tuple[str, ...]:
    """Ids of the controls whose evidence decides some caveats of a row."""
    try:
        return parse_artifact(path.read_bytes(), name=path.name).controls[:MAX_CONTROLS]
    except GlasshouseError:
        return ()  # verification says what is wrong with it


def _fetch_logs(site: _Site, keyring: Keyring, folder: Path) -> None:
    total = 0
    for key in sorted({log_key(entry.public) for entry in keyring.with_role("publisher")}):
        for place in LOG_FOLDERS:
            files: dict[str, bytes] = {}
            for name in (CHECKPOINT, LEAVES):
                path = f"research/{place}/{key}/{name}"
                files[name] = site.get(path, MAX_LOGS_BYTES - total, needed=False)
                total += len(files[name])
                if not files[name]:
                    break
            else:
                (folder / place / key).mkdir(parents=True)
                for name, data in files.items():
                    (folder / place / key / name).write_bytes(data)


def _fetch_bundle(site: _Site, base: str, bundle: Path) -> None:
    envelope = site.get(base + ENVELOPE, MAX_FILE_BYTES, needed=False)
    if not envelope:
        return
    bundle.mkdir(parents=True)
    (bundle / ENVELOPE).write_bytes(envelope)
    total = len(envelope)
    for name in _names(envelope):
        data = site.get(base + name, MAX_FILE_BYTES, needed=False)
        total += len(data)
        if total > MAX_BUNDLE_BYTES:
            raise RemoteError("the bundle is larger than any bundle may be", field="url", value=base)
        if data:
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            (bundle / name).write_bytes(data)


def _write_rows(data: bytes, artifacts: Path) -> None:
    """Write the site's rows as the artifact files they came from; what is none is left out."""
    if not data:
        return
    try:
        rows = parse_json(data, max_bytes=MAX_ROWS_BYTES)
    except CanonicalError as error:
        raise RemoteError(
            "the site's list of rows is not JSON", field="file", value="downloads/rows.json"
        ) from error
    for row in rows if isinstance(rows, list) else []:
        artifact = parse_artifact(canonical_json(row))
        (artifacts / f"{artifact.id}.json").write_bytes(artifact_bytes(artifact))


def _names(envelope: bytes) -> list[str]:
    """Return the file names that an envelope lists, unbelieved: those that a bundle can have."""
    try:
        payload = parse_json(base64.b64decode(parse_json(envelope)["payload"], validate=True))
        names = [str(item["name"]) for item in payload["subject"]]
    except (CanonicalError, binascii.Error, KeyError, TypeError):
        return []  # verification says what is wrong with it
    return [name for name in dict.fromkeys(names[:MAX_FILES]) if NAME.match(name) and name != ENVELOPE]
