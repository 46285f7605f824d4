"""What is said of published rows, of the site, and of what a journey brings home."""

from __future__ import annotations

from glasshouse.codes import Code
from glasshouse.reasons.entry import Place, Reason, explained

# A published row and its evidence.
ROWS: dict[Code, Reason] = {
    Code.ARTIFACT_SCHEMA: explained(
        "Fields of a row",
        "A row must have every field of its schema and none that may not be published.",
        Place.PUBLICATION,
    ),
    Code.ARTIFACT_NOT_CANONICAL: explained(
        "Row not canonical", "The row's file is not in the one form in which it is hashed.", Place.PUBLICATION
    ),
    Code.ARTIFACT_TOO_LARGE: explained(
        "Row too large", "The row's file is larger than a row may be.", Place.PUBLICATION
    ),
    Code.ARTIFACT_UNREADABLE: explained(
        "Row unreadable", "The row's file cannot be read.", Place.PUBLICATION
    ),
    Code.ARTIFACT_RECOMPUTED: explained(
        "Row recomputed", "The row must follow from its evidence bundle, byte for byte.", Place.PUBLICATION
    ),
    Code.MEASURED: explained(
        "Measured", "A simulated row measures nothing, and never passes as measured.", Place.PUBLICATION
    ),
    Code.RETRACTED: explained(
        "Retracted", "The row was withdrawn, and counts for nothing.", Place.PUBLICATION
    ),
    Code.SUPERSEDED: explained(
        "Superseded", "Another row took the place of the row, which counts in no headline.", Place.PUBLICATION
    ),
    Code.BUNDLE_MISSING: explained(
        "Evidence missing", "The row's evidence bundle is not beside it.", Place.PUBLICATION
    ),
    Code.BUNDLE_UNREADABLE: explained(
        "Evidence unreadable", "The row's evidence bundle cannot be read.", Place.PUBLICATION
    ),
    Code.BUNDLE_WITHOUT_ROW: explained(
        "Evidence without a row", "A bundle is published whose row is not.", Place.PUBLICATION
    ),
    Code.REGISTRATION_NOT_CHECKED: explained(
        "Announcement not checked",
        "The logs beside the row do not show whether its journey was announced beforehand.",
        Place.PUBLICATION,
    ),
    Code.RETRACTION_NOT_CHECKED: explained(
        "Withdrawal not checked",
        "No log could be asked whether the row was withdrawn: its own file does not show that. "
        "`--without-log` accepts it.",
        Place.PUBLICATION,
    ),
    Code.NOT_PUBLISHED: explained(
        "Not published",
        "No published row stands beside the evidence, so no published log could name a withdrawal.",
        Place.PUBLICATION,
    ),
    Code.CONTROL_VERIFIED: explained(
        "Controls verified",
        "The controls that a row names must verify from their own bundles.",
        Place.PUBLICATION,
    ),
    Code.LEDGER_INCLUSION: explained(
        "Row in the log", "The row must stand in a published log as it is published.", Place.PUBLICATION
    ),
    Code.LEDGER_NOT_CHECKED: explained(
        "Log not checked",
        "The row stands in no log beside it yet, so its place in one was not checked.",
        Place.PUBLICATION,
    ),
    Code.EVIDENCE_REPLACED: explained(
        "Evidence replaced",
        "The row is published already, with other evidence; what is published is never replaced.",
        Place.PUBLICATION,
    ),
    Code.OVERHEAD_RECOMPUTED: explained(
        "Overhead recomputed",
        "The published overhead must follow from the row's own figures.",
        Place.PUBLICATION,
    ),
    Code.RAW_RATE_RECOMPUTED: explained(
        "Raw rate recomputed",
        "The published raw rate must follow from the row's own counts and times.",
        Place.PUBLICATION,
    ),
    Code.PROTECTED_RATE_RECOMPUTED: explained(
        "Protected rate recomputed",
        "The published protected rate must follow from the row's own counts and times.",
        Place.PUBLICATION,
    ),
    Code.ADAPTERS_DIFFER: explained(
        "Adapters differ",
        "The two arms of a reported row must have published different adapter digests.",
        Place.PUBLICATION,
    ),
    Code.EVIDENCE_BUNDLE: explained(
        "Evidence published",
        "Nothing can be verified offline where no evidence was published.",
        Place.PUBLICATION,
    ),
    Code.NOT_VERIFIED_BY_US: explained(
        "Not verified by us",
        "Of a reported row, schema and arithmetic are checked, and nothing else can be.",
        Place.PUBLICATION,
    ),
}

# Rows, remarks and reports that are published together.
SITE: dict[Code, Reason] = {
    Code.ARITHMETIC_DISAGREES: explained(
        "Arithmetic disagrees",
        "A reported overhead does not follow from the figures published with it.",
        Place.PUBLICATION,
    ),
    Code.REMARK_WITHOUT_ROW: explained(
        "Remark without a row", "A remark is about a row that is not there.", Place.PUBLICATION
    ),
    Code.ID_USED_TWICE: explained("Id used twice", "Two rows have the same id.", Place.PUBLICATION),
    Code.ID_IS_NOT_FILE_NAME: explained(
        "File misnamed", "A row's file is not named by the row's id.", Place.PUBLICATION
    ),
    Code.REPORTED_ROW_MISSING: explained(
        "Reported row missing", "A row of the reported history is not published.", Place.PUBLICATION
    ),
    Code.REPORTED_ROW_UNKNOWN: explained(
        "Reported row unknown",
        "A row is published as reported that is not in the reported history.",
        Place.PUBLICATION,
    ),
    Code.REPORTED_ROW_EDITED: explained(
        "Reported row edited", "A reported row is not what the history gives.", Place.PUBLICATION
    ),
    Code.SIGNED_ROW_EDITED: explained(
        "Signed row edited", "A signed row is not what its evidence gives.", Place.PUBLICATION
    ),
    Code.SUPERSEDED_BY_UNKNOWN: explained(
        "Successor unknown", "A row names a successor that is not published.", Place.PUBLICATION
    ),
    Code.SIMULATED_ROW_PUBLISHED: explained(
        "Simulated row published",
        "A row that measures nothing lies among the published ones.",
        Place.PUBLICATION,
    ),
    Code.OVERLAY_ROW_NOT_OURS: explained(
        "Row that is not ours",
        "A local row is a reported one; only rows of this machine may lie there.",
        Place.PUBLICATION,
    ),
    Code.OVERLAY_FOLDER: explained(
        "Folder out of place",
        "A folder of local rows is a link or a file, or holds what belongs to no row.",
        Place.PUBLICATION,
    ),
    Code.TAMPER_REPORT_SCHEMA: explained(
        "Tamper report malformed",
        "The report of the tamper suite does not have the fields that it must have.",
        Place.PUBLICATION,
    ),
    Code.TAMPER_REPORT_MALFORMED: explained(
        "Tamper report unreadable", "The report of the tamper suite is no JSON document.", Place.PUBLICATION
    ),
    Code.TAMPER_REPORT_TWICE: explained(
        "Attack listed twice", "The report of the tamper suite lists one attack twice.", Place.PUBLICATION
    ),
    Code.TAMPER_REPORT_LACKS: explained(
        "Attack missing",
        "The report of the tamper suite lacks an attack that was published before.",
        Place.PUBLICATION,
    ),
    Code.TAMPER_REPORT_NO_CONTROL: explained(
        "Attack without a control",
        "The report of the tamper suite lists an attack without the same steps done honestly.",
        Place.PUBLICATION,
    ),
    Code.TAMPER_REPORT_CONTRADICTS: explained(
        "Report contradicts itself",
        "The report of the tamper suite calls an attack fended off that was not.",
        Place.PUBLICATION,
    ),
    Code.TAMPER_REPORT_TOTAL: explained(
        "Total wrong", "The report's totals do not follow from the attacks that it lists.", Place.PUBLICATION
    ),
}

# The archive that a journey brings home from a borrowed machine.
JOURNEYS: dict[Code, Reason] = {
    Code.ARCHIVE_MALFORMED: explained(
        "Archive malformed", "The archive is damaged, or was not packed by this software.", Place.JOURNEY
    ),
    Code.ARCHIVE_CUT: explained("Archive cut short", "The archive ends too early.", Place.JOURNEY),
    Code.ARCHIVE_ORDER: explained(
        "Archive out of order",
        "The archive's files are not in the order in which they are packed.",
        Place.JOURNEY,
    ),
    Code.ARCHIVE_TOO_LARGE: explained(
        "Archive too large", "The archive holds more files or bytes than a journey's may.", Place.JOURNEY
    ),
    Code.ARCHIVE_MEMBER: explained(
        "No plain file", "The archive holds something that is no plain file.", Place.JOURNEY
    ),
    Code.ARCHIVE_NAME: explained(
        "Name not allowed in an archive",
        "The archive holds a file under a name that an archive may not hold.",
        Place.JOURNEY,
    ),
    Code.ARCHIVE_UNLISTED: explained(
        "File that is no journey's",
        "The archive holds a file that does not belong to a journey.",
        Place.JOURNEY,
    ),
    Code.ARCHIVE_MISSING: explained(
        "File missing from the archive", "The archive lacks a file that belongs to a journey.", Place.JOURNEY
    ),
    Code.JOURNEY_TOO_LONG: explained(
        "Journey too long", "The journey's log has more entries than a journey's may.", Place.JOURNEY
    ),
    Code.JOURNEY_BUNDLE: explained(
        "Bundle of another run",
        "A bundle lies under another run, or the journey's log does not name it.",
        Place.JOURNEY,
    ),
    Code.JOURNEY_KEYS: explained(
        "Keys of another machine",
        "The archive does not offer the journey's own keys, or offers those of another machine.",
        Place.JOURNEY,
    ),
    Code.JOURNEY_NONE: explained("No journey", "The archive's log is not a journey's.", Place.JOURNEY),
}
