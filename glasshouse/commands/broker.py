"""The key broker as a service of its own: challenges, appraisal, grants over HTTP, from a durable store.

  glasshouse broker --port 8443
  glasshouse broker --audit --last 20    what it granted and refused, newest last; --run RUN: of that run
  glasshouse broker --store postgresql+psycopg://broker@db/glasshouse    with the postgres extra installed

A run has a broker of its own built in. With GLASSHOUSE_BROKER=PORT it uses this one instead, at that port of
its own loopback (`ssh -L` where it is on another machine): payload keys then rest there and not where sweeps
run. Packages and tickets are taken from the operators that the keyring here lists; the run's keyring must
list this broker's key.
It listens on loopback unless told otherwise: pods reach it through an SSH forward. Payload keys rest in
the store under a key that is kept in this machine's keys folder. After `glasshouse keys --rotate broker`,
start it again: it signs with the new key and goes on publishing the old one in its JWK Set.
No other process of its user can read its memory or trace it, and it dumps no core.
"""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import signal
import sys
import threading
import time
from dataclasses import asdict

from glasshouse import host, paths
from glasshouse.attestation.broker import Broker
from glasshouse.attestation.operator import Desk
from glasshouse.attestation.server import serve
from glasshouse.attestation.store import open_store, read_audit
from glasshouse.commands.terminal import emit, say, table
from glasshouse.errors import UsageError
from glasshouse.records.keys import broker_key, load_keyring, local_keyring, public_bytes
from glasshouse.runtime import linux

KEK_FILE = "broker.kek"
KEK_BYTES = 32
AUDIT_LINES = 100
MAX_AUDIT_LINES = 10_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8443, help="port to listen on, 0 for a free one (8443)")
    parser.add_argument("--store", metavar="URL", help="SQLAlchemy URL (a SQLite file in the state folder)")
    parser.add_argument("--audit", action="store_true", help="print the store's audit log; serves nothing")
    parser.add_argument("--run", metavar="RUN", help="with --audit: of this run alone")
    parser.add_argument("--last", type=int, metavar="N", help="with --audit: at most so many lines (100)")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted or terminated, or print the audit log."""
    url = args.store or f"sqlite:///{paths.state_dir() / 'broker.db'}"
    if args.audit:
        return _audit(args, url)
    for name in ("run", "last"):
        if (value := getattr(args, name)) is not None:
            raise UsageError(
                f"--{name} is for the audit log",
                field=name,
                value=str(value)[:80],
                remedy="give --audit with it",
            )
    if not 0 <= args.port <= 65535:
        raise UsageError("not a port", field="port", value=args.port, remedy="give 0 to 65535")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    _harden()  # before any key is read
    with open_store(url, _kek()) as store:
        key = broker_key()
        listed = [entry.public for entry in local_keyring().with_role("broker")]
        broker = Broker(store, key, earlier=[raw for raw in listed if raw != public_bytes(key)])
        try:
            desk = Desk(broker, key, _operator)
            with serve(broker, args.host, args.port, desk=desk) as server:
                if args.json:
                    emit({"ok": True, "host": server.host, "port": server.port, "broker": broker.id})
                else:
                    say(f"broker {broker.id} listens on http://{server.host}:{server.port}; Ctrl-C ends it")
                sys.stdout.flush()  # whoever started us reads the port from a pipe
                stop.wait()
        except OSError as error:
            raise UsageError(
                f"cannot listen there ({error.strerror})",
                field="host:port",
                value=f"{args.host}:{args.port}",
                remedy="give another --port or --host",
            ) from error
    return 0


def _harden() -> None:
    """Close this process's memory to others of its user, as the roles on a pod do; on a Mac, dump no core."""
    if sys.platform == "linux":
        linux.harden()
    else:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _audit(args: argparse.Namespace, url: str) -> int:
    last = AUDIT_LINES if args.last is None else args.last
    if not 1 <= last <= MAX_AUDIT_LINES:
        raise UsageError(
            "not a number of lines", field="last", value=last, remedy=f"give 1 to {MAX_AUDIT_LINES}"
        )
    lines = read_audit(url, last=last, run=args.run)
    if args.json:
        emit({"ok": True, "lines": [asdict(line) for line in lines]})
        return 0
    if not lines:
        say("no audit lines" + (f" of run {args.run}" if args.run else ""))
        return 0
    header = ("line", "time, UTC", "opening", "event", "run", "leg", "launch", "reason codes")
    rows = [
        (
            line.seq,
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(line.at)),
            line.store[:8],
            line.event,
            line.run,
            line.leg,
            line.launch,
            ", ".join(line.codes),
        )
        for line in lines
    ]
    say(table(header, rows))
    return 0


def _operator(kid: str) -> bytes | None:
    """Public key of an operator that the keyring lists, read for each request, and that is not retired."""
    listed = [entry for entry in load_keyring().with_role("operator") if entry.keyid == kid]
    return listed[0].public if listed and all(entry.valid_until is None for entry in listed) else None


def _kek() -> bytes:
    """Return the 32-byte key that payload keys rest under; made on first use, mode 0600."""
    path = paths.keys_dir() / KEK_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEK_BYTES))
            file.flush()
            host.sync(file.fileno())
    except FileExistsError:
        pass
    if path.stat().st_mode & 0o077:
        raise UsageError("key file is readable by others", field="key", value=KEK_FILE, remedy="chmod 600 it")
    kek = path.read_bytes()
    if len(kek) != KEK_BYTES:
        raise UsageError(
            "key file is damaged",
            field="key",
            value=KEK_FILE,
            remedy="restore it, or remove it with the store",
        )
    return kek
