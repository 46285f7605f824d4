"""Data files of the site: all rows as JSON, CSV and JSON-LD, the schema, a feed, a citation. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from xml.etree import ElementTree as ET

from glasshouse import __version__
from glasshouse.publishing import labels
from glasshouse.publishing.artifact import (
    SCHEMA_PATH,
    Artifact,
    artifact_schema,
)

LICENSE_URL = "https://www.apache.org/licenses/LICENSE-2.0"
_ATOM = "http://www.w3.org/2005/Atom"

CSV_COLUMNS = tuple(
    """
    id date status evidenceTier provider providerTier gpu gpuModel model unit order control
    durationSec targetSteps steps overheadPct ciLowPct ciHighPct n method verdict
    protectedEpochsPerSec rawEpochsPerSec protectedStepsPerSec rawStepsPerSec protectedSteps rawSteps
    protectedElapsedSec rawElapsedSec protectedFinalLoss rawFinalLoss attestation runtimeState
    sameAllocation providerInstanceId caveats exclusionCodes supersededBy retracted sha256
    """.split()  # noqa: SIM905 - forty names read better as a paragraph than one a line
)


class Row(Protocol):
    """A published row: the artifact, its heading, its bytes, their hash, and the same as JSON values."""

    @property
    def artifact(self) -> Artifact:
        """The artifact."""

    @property
    def title(self) -> str:
        """Its heading for readers."""

    @property
    def data(self) -> bytes:
        """Its canonical bytes."""

    @property
    def sha256(self) -> str:
        """Their SHA-256, hex."""

    @property
    def public(self) -> Mapping[str, Any]:
        """The same as JSON values."""


def files(rows: Sequence[Row]) -> dict[str, bytes]:
    """Every data file for these rows: {path: bytes}."""
    ordered = sorted(rows, key=lambda row: row.artifact.id)
    return {
        "downloads/rows.json": _rows_json(ordered),
        "downloads/rows.csv": _rows_csv(ordered),
        "downloads/rows.jsonld": _pretty(dataset(ordered)),
        SCHEMA_PATH: _pretty(artifact_schema()),
        "feed.xml": feed(ordered),
        "CITATION.cff": citation(ordered).encode("utf-8"),
    }


def _rows_json(rows: Sequence[Row]) -> bytes:
    return b"[" + b",".join(row.data for row in rows) + b"]"  # canonical: so is each of its parts


def _rows_csv(rows: Sequence[Row]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        public = dict(row.public)
        public |= {key: value for key, value in (public["overhead"] or {}).items() if key in CSV_COLUMNS}
        public["caveats"] = " ".join(public["caveats"])
        public["exclusionCodes"] = " ".join(public["exclusion"]["codes"]) if public["exclusion"] else ""
        public["retracted"] = public["retracted"]["reason"] if public["retracted"] else ""
        public["sha256"] = row.sha256
        writer.writerow({key: _cell(value) for key, value in public.items()})
    return out.getvalue().encode("utf-8")


def _cell(value: Any) -> Any:
    """A spreadsheet may run a cell that starts like a formula; negative numbers are numbers, and safe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode("utf-8")


def dataset(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as a schema.org Dataset (JSON-LD)."""
    return {
        "@context": "https://schema.org/",
        "@type": "Dataset",
        "name": "Glasshouse: what an attested training lifecycle costs on rented GPUs",
        "description": (
            "Protected against raw training on the same allocation, one row a run. Software-enforced "
            "protection, not a hardware TEE. Rows of tier reported were published before this software "
            "existed and are not verified by us."
        ),
        "license": LICENSE_URL,
        "version": __version__,
        "isAccessibleForFree": True,
        "dateModified": max((row.artifact.date for row in rows), default=""),
        "variableMeasured": [
            {"@type": "PropertyValue", "name": "overheadPct", "unitText": "percent of raw throughput"},
            {"@type": "PropertyValue", "name": "fixedCostSec", "unitText": "seconds a run"},
        ],
        "distribution": [
            {"@type": "DataDownload", "encodingFormat": kind, "contentUrl": path}
            for kind, path in (
                ("application/json", "downloads/rows.json"),
                ("text/csv", "downloads/rows.csv"),
                ("application/schema+json", SCHEMA_PATH),
            )
        ],
        "hasPart": [
            {
                "@type": "Dataset",
                "identifier": row.artifact.id,
                "name": row.title,
                "url": f"rows/{row.artifact.id}/",
                "datePublished": row.artifact.date,
                "creativeWorkStatus": f"{row.artifact.evidence_tier}: {row.artifact.status}",
                "sha256": row.sha256,
            }
            for row in rows
        ],
    }


def feed(rows: Sequence[Row]) -> bytes:
    """An Atom feed (RFC 4287) of the rows, newest first; ids are tag URIs, links relative."""
    ET.register_namespace("", _ATOM)
    root = ET.Element(f"{{{_ATOM}}}feed")
    newest = max((row.artifact.date for row in rows), default="2026-01-01")
    ET.SubElement(root, f"{{{_ATOM}}}id").text = "tag:glasshouse,2026:rows"
    ET.SubElement(root, f"{{{_ATOM}}}title").text = "Glasshouse rows"
    ET.SubElement(root, f"{{{_ATOM}}}updated").text = f"{newest}T00:00:00Z"
    author = ET.SubElement(root, f"{{{_ATOM}}}author")
    ET.SubElement(author, f"{{{_ATOM}}}name").text = "Glasshouse"
    ET.SubElement(root, f"{{{_ATOM}}}link", rel="self", href="feed.xml", type="application/atom+xml")
    for view in sorted(rows, key=lambda item: (item.artifact.date, item.artifact.id), reverse=True):
        row = view.artifact
        entry = ET.SubElement(root, f"{{{_ATOM}}}entry")
        overhead = labels.percent(row.overhead_pct)
        updated = row.retracted.date if row.retracted else row.date
        for tag, text in (
            ("id", f"tag:glasshouse,2026:rows/{row.id}"),
            ("title", view.title),
            ("updated", f"{updated}T00:00:00Z"),
            ("summary", f"{row.evidence_tier}, {row.status}; overhead {overhead}. Not a hardware TEE."),
        ):
            ET.SubElement(entry, f"{{{_ATOM}}}{tag}").text = text
        ET.SubElement(entry, f"{{{_ATOM}}}link", href=f"rows/{row.id}/", rel="alternate", type="text/html")
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def citation(rows: Sequence[Row]) -> str:
    """A CITATION.cff (format 1.2.0) for the data set."""
    newest = max((row.artifact.date for row in rows), default="2026-01-01")
    return f"""cff-version: 1.2.0
message: Cite a row by its id and the SHA-256 of its artifact, both on its page.
type: dataset
title: "Glasshouse: what an attested training lifecycle costs on rented GPUs"
version: {__version__}
date-released: {newest}
license: Apache-2.0
authors:
  - name: The Glasshouse authors
"""
