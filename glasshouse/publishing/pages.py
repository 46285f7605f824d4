"""`render(publication) -> {path: bytes}`: every generated page and data file, without I/O.

Paths are relative to the site's source folder. Pages are finished HTML behind front matter; the hook
hands them to MkDocs, `glasshouse pages` writes the same to disk. Links are relative, so the site
works under any address.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from glasshouse.canonical import canonical_json, sha256_hex
from glasshouse.judgement.caveats import CAVEATS, caveat
from glasshouse.judgement.headline import MIN_ALLOCATIONS, headlines
from glasshouse.publishing import charts, downloads, labels, reanalysis
from glasshouse.publishing.artifact import Artifact, artifact_bytes
from glasshouse.publishing.claim_sources import SOURCES, Sourced
from glasshouse.publishing.from_bundle import candidates
from glasshouse.publishing.history import Remark
from glasshouse.publishing.logs import KEYS, PublishedLogs
from glasshouse.publishing.publication_files import Publication
from glasshouse.publishing.published_log import CHECKPOINT, LEAVES, Place, SupersedeLeaf
from glasshouse.publishing.tamper_report import PUBLISHED
from glasshouse.reasons import GROUPS, REASONS, reason
from glasshouse.records.keys import KeyEntry, Keyring
from glasshouse.records.ledger import log_key

LOCAL_LEDGER = "research/local-ledger"


@dataclass(frozen=True)
class RowView:
    """One row as pages see it: the artifact and what is derived from it."""

    artifact: Artifact
    title: str  # heading for readers; no two rows of a site share one
    local: bool
    bundle: tuple[str, ...]
    remarks: tuple[Remark, ...]
    logs: PublishedLogs = field(default_factory=PublishedLogs)
    claims: Sourced = ()

    @cached_property
    def place(self) -> Place | None:
        """Where the row stands, and in which log, with proofs."""
        return self.logs.place(self.id)

    @cached_property
    def inclusion(self) -> bytes | None:
        """The file that shows its entry in a log, None where no log names it."""
        return self.logs.inclusion(self.id, self.sha256)

    @property
    def supersession(self) -> SupersedeLeaf | None:
        """The newest entry that says by what the row is superseded, and why; None where no log says so."""
        return self.logs.latest("supersede", self.id)

    @property
    def id(self) -> str:
        """The row's id, which is also its address."""
        return self.artifact.id

    @cached_property
    def data(self) -> bytes:
        """The artifact's bytes."""
        return artifact_bytes(self.artifact)

    @cached_property
    def public(self) -> dict[str, Any]:
        """The artifact as JSON values."""
        return dict(json.loads(self.data))

    @cached_property
    def sha256(self) -> str:
        """Hash of the artifact's bytes."""
        return sha256_hex(self.data)

    @cached_property
    def json_text(self) -> str:
        """The artifact, indented for reading."""
        return json.dumps(self.public, indent=2, ensure_ascii=False)

    @property
    def badge(self) -> tuple[str, str]:
        """CSS class and text of the status badge."""
        row = self.artifact
        if row.retracted is not None:
            return "retracted", "retracted"
        if self.local:
            return "local", f"local, {row.status}"
        if row.evidence_tier == "simulated":
            return "simulated", "simulated"
        if row.evidence_tier == "reported":
            return "reported", "reported, excluded" if row.exclusion else "reported, not verified by us"
        return row.status, row.status


@dataclass(frozen=True)
class Counts:
    """What the ledger says: attempted = verified + excluded for signed rows; reported apart."""

    verified: int
    excluded: int  # retracted rows among them
    retracted: int
    jobs: int
    reported: int
    reported_without_raw: int
    reported_excluded: int
    local: int

    @property
    def attempted(self) -> int:
        """Signed attempts; unknown for the reported history."""
        return self.verified + self.excluded


def render(publication: Publication) -> dict[str, bytes]:
    """Render all pages and data files: {path: bytes}. Pure: equal publications give equal bytes."""
    rows = _views(publication)
    environment = _environment(tuple(sorted(publication.templates.items())))
    shared: dict[str, Any] = {
        "rows": rows,
        "counts": count(rows),
        "published": [row for row in rows if not row.local],
        "remarks": publication.remarks,
        "tamper": publication.tamper,
        "tamper_published": PUBLISHED,
        "logs": publication.logs,
        "local_logs": publication.local_logs,
        "without_log": without_log(publication),
        "published_ids": frozenset(row.id for row in rows if not row.local),
        "words": labels,
        "charts": charts,
        "pools": reanalysis.pools([row.artifact for row in rows if not row.local]),
        "headlines": headlines(candidates(row.artifact for row in rows if not row.local)),
        "min_allocations": MIN_ALLOCATIONS,
        "caveat": caveat,
        "all_caveats": CAVEATS,
        "sources": SOURCES,
        "reason": reason,
        "reasons": REASONS,
        "all_reasons": GROUPS,
        "by_id": {row.id: row for row in rows},
    }
    pages: dict[str, bytes] = {}
    for path, template, title, description, extra in _plan(rows):
        # rows/x.md is served as rows/x/, one level deeper; an index page stays at its own level.
        root = "../" * (path.count("/") + (0 if path.endswith("index.md") else 1))
        body = environment.get_template(template).render(
            **shared, **extra, root=root or "./", page_title=title, page_path=path
        )
        pages[path] = _page(title, description, body)
    pages |= downloads.files([row for row in rows if not row.local])
    return pages | _evidence(publication, rows)


def _evidence(publication: Publication, rows: Iterable[RowView]) -> dict[str, bytes]:
    """What a reader's own browser checks a row against: keys, and each row's place in its log."""
    files = {f"research/{KEYS}": _ring(publication.keyring)}
    if publication.local:
        files[f"{LOCAL_LEDGER}/{KEYS}"] = _ring(publication.local_keyring)
    for log in publication.local_logs.logs:
        files[f"{LOCAL_LEDGER}/{log.key}/{LEAVES}"] = log.data
        files[f"{LOCAL_LEDGER}/{log.key}/{CHECKPOINT}"] = log.note.encode("utf-8")
    for row in rows:
        if row.inclusion is not None:
            files[f"research/inclusion/{row.id}.json"] = row.inclusion
    return files


def without_log(publication: Publication) -> tuple[KeyEntry, ...]:
    """Publishers that the committed keyring lists and that have published no log: they may keep one."""
    return tuple(
        entry
        for entry in publication.keyring.with_role("publisher")
        if publication.logs.of(log_key(entry.public)) is None
    )


def _ring(keyring: Keyring) -> bytes:
    return canonical_json({"keys": [entry.as_json() for entry in keyring.entries]})


def count(rows: Iterable[RowView]) -> Counts:
    """Count rows by status and tier. Local, simulated and control rows never enter published counts."""
    published = [row.artifact for row in rows if not row.local]
    every = [row for row in published if row.evidence_tier == "signed"]
    signed = [row for row in every if row.order != "protected-only"]  # a job is listed apart
    reported = [row for row in published if row.evidence_tier == "reported"]
    return Counts(
        verified=sum(row.status == "verified" and row.retracted is None for row in signed),
        excluded=sum(row.status == "excluded" or row.retracted is not None for row in signed),
        retracted=sum(row.retracted is not None for row in signed),
        jobs=len(every) - len(signed),
        reported=sum(row.overhead_pct is not None for row in reported),
        reported_without_raw=sum(row.order == "protected-only" for row in reported),
        reported_excluded=sum(row.exclusion is not None for row in reported),
        local=sum(row.local for row in rows),
    )


def _views(publication: Publication) -> tuple[RowView, ...]:
    titles = labels.titles(publication.artifacts)
    views = [
        RowView(
            artifact=artifact,
            title=titles[artifact.id],
            local=artifact.id in publication.local,
            bundle=publication.bundles.get(artifact.id, ()),
            remarks=publication.remarks.about(artifact.id),
            logs=publication.local_logs if artifact.id in publication.local else publication.logs,
            claims=publication.claims.get(artifact.id, ()),
        )
        for artifact in publication.artifacts
    ]
    rank = {"signed": 0, "reported": 1, "simulated": 2}
    return tuple(sorted(views, key=lambda row: (row.local, rank[row.artifact.evidence_tier], row.id)))


_Plan = tuple[str, str, str, str, Mapping[str, Any]]

_PAGES = (
    (
        "index.md",
        "index",
        "Glasshouse",
        "What it costs to train on a rented GPU under an attested lifecycle.",
    ),
    ("results.md", "results", "Results", "Every published row, with its status, tier, interval and caveats."),
    ("ledger.md", "ledger", "Ledger", "Every plan entered before anything was rented, and what it became."),
    ("exclusions.md", "exclusions", "Exclusion ledger", "What was attempted, what was excluded, and why."),
    ("reasons.md", "reasons", "Reasons explained", "What each reason code means, and where it arises."),
    ("caveats.md", "caveats", "Caveats explained", "What each caveat means and which rows carry it."),
    (
        "downloads.md",
        "downloads",
        "Downloads",
        "The rows as JSON, CSV and JSON-LD, their schema, and a feed.",
    ),
    ("research/index.md", "research", "Research", "Articles written from the published rows."),
    (
        "research/same-instance-overhead.md",
        "article-same-instance",
        "Same-instance overhead on three GPUs",
        "Protected against raw MLP training on one machine: an H100, an RTX PRO 6000 and an RTX A4000.",
    ),
    (
        "research/h100-follow-up.md",
        "article-h100",
        "The H100 half hour, repeated",
        "The same thirty minutes with the protected leg first, and why the two figures do not agree.",
    ),
    (
        "research/model-workload.md",
        "article-model",
        "LoRA on 0.5B and 7B models",
        "What the published LoRA rows say, and what kept the GPU from being the bottleneck.",
    ),
    (
        "research/history-reanalysis.md",
        "article-history",
        "The history, read again",
        "What the rows published before this software can and cannot show.",
    ),
    (
        "research/tamper-report.md",
        "tamper",
        "Tamper report",
        "Altered exchanges must be refused, each beside a control.",
    ),
)


def _plan(rows: tuple[RowView, ...]) -> Iterable[_Plan]:
    for path, template, title, description in _PAGES:
        yield path, f"{template}.html.j2", title, description, {}
    for row in rows:
        overhead = labels.percent(row.artifact.overhead_pct)
        description = f"{row.title}: overhead {overhead}. {row.badge[1].capitalize()}."
        yield f"rows/{row.id}.md", "row.html.j2", row.title, description, {"row": row}


def _page(title: str, description: str, body: str) -> bytes:
    wide = "hide: [navigation, toc]"
    named = f"title: {json.dumps(title)}\ndescription: {json.dumps(description)}"
    front = f"---\n{named}\nfinished: true\n{wide}\n---\n"
    return (front + body.strip() + "\n").encode("utf-8")


def framed_tables(html: str) -> str:
    """Put each Markdown table in a scrolling region that a keyboard can reach (WCAG 2.1.1).

    Markdown aligns columns by inline styles, which the policy forbids: a class says the same.
    """
    html = html.replace(' style="text-align: right;"', ' class="n"')
    html = re.sub(r' style="text-align: (left|center);"', "", html)
    count = 0

    def frame(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        opening = f'<div class="gh-scroll" role="region" aria-label="Table {count}" tabindex="0">'
        return f'{opening}<table class="gh-table">{match[1]}</table></div>'

    return re.sub(r"<table>(.*?)</table>", frame, html, flags=re.DOTALL)


@functools.lru_cache(maxsize=1)  # compiling the templates takes longer than rendering a small site
def _environment(templates: tuple[tuple[str, str], ...]) -> Environment:
    environment = Environment(
        loader=DictLoader(dict(templates)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": labels.percent,
        "number": labels.number,
        "seconds": labels.seconds,
        "moment": labels.moment,
    }
    return environment
