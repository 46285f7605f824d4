"""What verification says of bundles, events, keys and ledgers."""

from __future__ import annotations

from glasshouse.codes import Code
from glasshouse.reasons.entry import Place, Reason, explained

# Files of an evidence bundle.
FILES: dict[Code, Reason] = {
    Code.FILES_LISTED: explained(
        "Files in place",
        "Every file of the bundle lies where it belongs and is in canonical form.",
        Place.BUNDLE,
    ),
    Code.FILE_UNLISTED: explained(
        "File that does not belong",
        "The bundle holds a file that does not belong to it, or that was not signed.",
        Place.BUNDLE,
    ),
    Code.FILE_MISSING: explained("File missing", "The bundle lacks a file that belongs to it.", Place.BUNDLE),
    Code.FILE_UNREADABLE: explained(
        "File unreadable", "A file of the bundle cannot be read, or is larger than it may be.", Place.BUNDLE
    ),
    Code.FILE_NOT_CANONICAL: explained(
        "File not canonical",
        "A file of the bundle is not in the one form in which it is hashed.",
        Place.BUNDLE,
    ),
    Code.FILE_MALFORMED: explained(
        "File malformed", "A file of the bundle does not have the fields that it must have.", Place.BUNDLE
    ),
    Code.FOLDER_UNREADABLE: explained(
        "Folder unreadable", "A folder of the bundle cannot be read.", Place.BUNDLE
    ),
    Code.FOLDER_EMPTY: explained("Folder empty", "A folder of the bundle is empty.", Place.BUNDLE),
    Code.BUNDLE_TOO_LARGE: explained(
        "Bundle too large", "The bundle holds more files or bytes than a bundle may.", Place.BUNDLE
    ),
    Code.FILE_DIGESTS: explained(
        "Files as signed", "The files have the digests that were signed.", Place.BUNDLE
    ),
    Code.DIGEST_MISMATCH: explained(
        "File altered",
        "A file is not the one whose digest was signed or sealed with it.",
        Place.BUNDLE,
        Place.SEALING,
    ),
}

# What the operator signed: the bundle's statement, the plan, the record.
STATEMENTS: dict[Code, Reason] = {
    Code.BUNDLE_SIGNATURE: explained(
        "Bundle signed", "The bundle's list of files is signed by a key of the keyring.", Place.BUNDLE
    ),
    Code.ENVELOPE_MALFORMED: explained(
        "Envelope malformed", "The signed envelope is not of its form.", Place.BUNDLE
    ),
    Code.SIGNATURE_INVALID: explained(
        "Signature invalid",
        "The envelope's signature does not verify with the key that it names.",
        Place.BUNDLE,
    ),
    Code.STATEMENT_MALFORMED: explained(
        "Statement malformed", "The signed statement is not of its form.", Place.BUNDLE
    ),
    Code.PREDICATE_TYPE: explained(
        "Another statement", "The signed statement is of another type than is wanted here.", Place.BUNDLE
    ),
    Code.STATEMENT: explained(
        "Statement of this run",
        "The signed statement must name this run, its plan and its record.",
        Place.BUNDLE,
    ),
    Code.PLAN_SIGNATURE: explained(
        "Plan signed", "The plan must be signed by an operator whose key was valid at the time.", Place.BUNDLE
    ),
    Code.PLAN_FORM: explained(
        "Plan well formed",
        "The plan must have every field, and its signature must name the spec it holds.",
        Place.BUNDLE,
    ),
    Code.PLAN_SIGNER: explained(
        "One signer", "Plan and bundle must be signed by the same operator.", Place.BUNDLE
    ),
    Code.SIGNER_RETIRED_SINCE: explained(
        "Key retired since",
        "The plan's key was retired after it signed, so only the published log shows that the plan is older.",
        Place.BUNDLE,
    ),
    Code.PLAN_IN_LEDGER: explained(
        "Plan in the ledger", "The plan must stand in the ledger that was signed.", Place.BUNDLE
    ),
    Code.SCHEDULE_FROM_SEED: explained(
        "Schedule from the seed",
        "The order of the slots must follow from the registered spec and its seed.",
        Place.BUNDLE,
    ),
    Code.LEGS_AS_PLANNED: explained(
        "Legs as planned", "The launches in the bundle are those of slots of the plan.", Place.BUNDLE
    ),
    Code.LEG_NOT_PLANNED: explained(
        "Leg not planned", "The bundle holds a leg that is no slot of the plan.", Place.BUNDLE
    ),
    Code.LEG_MISPLACED: explained(
        "Leg misplaced", "A leg's folder holds the launch of another slot.", Place.BUNDLE
    ),
    Code.LEG_BEFORE_PLAN: explained(
        "Leg before its plan", "A leg started before the plan was registered.", Place.BUNDLE
    ),
    Code.LAUNCHES_INCOMPLETE: explained(
        "Launches incomplete",
        "Launches of a slot are missing or out of order, or one followed a complete one.",
        Place.BUNDLE,
    ),
    Code.LEG_EVIDENCE: explained(
        "Evidence of a leg",
        "A leg's evidence must verify again, or its faults must be those that the record names.",
        Place.BUNDLE,
    ),
    Code.RECORD_RECOMPUTED: explained(
        "Record recomputed", "The record must follow from the evidence, byte for byte.", Place.BUNDLE
    ),
    Code.RECORD_METHOD: explained(
        "Method unknown", "The record was judged by a method that this version does not know.", Place.BUNDLE
    ),
    Code.CONTROL: explained(
        "Control", "The run is a control; the detail says what came of it.", Place.BUNDLE
    ),
    Code.NO_FIGURE: explained("No figure", "The run gives no overhead; the detail says why.", Place.BUNDLE),
    Code.CANNOT_BE_READ: explained("Cannot be read", "What was to be verified cannot be read.", Place.BUNDLE),
}

# A leg's exchange with the broker, as it lies in a bundle.
EVIDENCE: dict[Code, Reason] = {
    Code.REFERENCE_OF_ANOTHER_LAUNCH: explained(
        "Reference of another launch",
        "What the evidence was compared with belongs to another launch.",
        Place.BUNDLE,
    ),
    Code.REFERENCE_OF_ANOTHER_ALLOCATION: explained(
        "Reference of another machine",
        "What the evidence was compared with does not fit the machine that the controller saw.",
        Place.BUNDLE,
    ),
    Code.EXCHANGE_OUTSIDE_LAUNCH: explained(
        "Exchange outside its launch",
        "The exchange with the broker did not happen while its launch ran.",
        Place.BUNDLE,
    ),
    Code.EXCHANGE_REFUSED: explained(
        "Exchange refused", "The broker released nothing, and gave no reason.", Place.BUNDLE
    ),
    Code.EAR_NOT_OF_CHALLENGE: explained(
        "Result of another challenge",
        "The attestation result is not about this evidence and its challenge.",
        Place.BUNDLE,
    ),
    Code.EAR_DIFFERS: explained(
        "Result differs",
        "The attestation result is not the one that appraising the evidence again gives.",
        Place.BUNDLE,
    ),
    Code.GRANT_CLAIM_MISMATCH: explained(
        "Grant names another launch",
        "The grant names another launch than the one it lies beside.",
        Place.BUNDLE,
    ),
    Code.RELEASED_ON_REFUSAL: explained(
        "Released although refused",
        "The broker released the key for evidence that it had to refuse.",
        Place.BUNDLE,
    ),
}

# A leg's events and the operator's heads over them.
EVENTS: dict[Code, Reason] = {
    Code.EVENTS_MISSING: explained(
        "No events", "The key was released, and the leg left no events.", Place.EVENTS
    ),
    Code.EVENTS_WITHOUT_GRANT: explained(
        "Events without a grant", "The leg left events, and no grant opens their chain.", Place.EVENTS
    ),
    Code.EVENTS_WITHOUT_KEY: explained(
        "Events without a key",
        "The leg left events, and no evidence names the key that signed them.",
        Place.EVENTS,
    ),
    Code.EVENT_INVALID: explained(
        "Event invalid", "An event is not of its form, or is not signed with the leg's key.", Place.EVENTS
    ),
    Code.EVENT_SEQUENCE: explained(
        "Event missing or moved", "The events are not numbered without gaps.", Place.EVENTS
    ),
    Code.EVENT_LINK: explained(
        "Event not linked", "An event does not name the hash of the one before it.", Place.EVENTS
    ),
    Code.EVENT_TIME: explained(
        "Time runs backwards", "An event is older than the one before it.", Place.EVENTS
    ),
    Code.EVENT_ORDER: explained(
        "Events out of order", "The events do not tell a leg in the order in which one runs.", Place.EVENTS
    ),
    Code.HEAD_INVALID: explained("Head malformed", "A countersigned head is not of its form.", Place.EVENTS),
    Code.HEAD_OTHER_LEG: explained(
        "Head of another leg", "A countersigned head belongs to another leg or launch.", Place.EVENTS
    ),
    Code.HEAD_SIGNATURE: explained(
        "Head signature invalid", "A head is not signed by the operator.", Place.EVENTS
    ),
    Code.HEAD_TIME: explained(
        "Head out of its time",
        "A head was signed before the key was released or after the leg ended, or heads are out of order.",
        Place.EVENTS,
    ),
    Code.HEAD_MISMATCH: explained(
        "Head of other events", "A countersigned head does not name an event of this chain.", Place.EVENTS
    ),
    Code.HEADS_INCOMPLETE: explained(
        "Last event not countersigned", "The operator's heads do not reach the last event.", Place.EVENTS
    ),
    Code.ZEROIZATION_MALFORMED: explained(
        "Wipe report malformed", "The leg's report of its wipe is not of its form.", Place.WIPE
    ),
}

# Keys, keyrings and checkpoints.
KEYS: dict[Code, Reason] = {
    Code.SIGNER_UNKNOWN: explained(
        "Signer unknown", "The key that signed is not in the keyring.", Place.BUNDLE, Place.LEDGER
    ),
    Code.SIGNER_ROLE: explained(
        "Signer of another role",
        "The key that signed is in the keyring, but not for this.",
        Place.BUNDLE,
        Place.LEDGER,
    ),
    Code.SIGNER_RETIRED: explained(
        "Signer retired",
        "The key that signed was not valid at this place in the ledger.",
        Place.BUNDLE,
        Place.LEDGER,
    ),
    Code.KEYRING_MALFORMED: explained(
        "Keyring malformed", "The keyring is not of its form.", Place.BUNDLE, Place.LEDGER
    ),
    Code.KEYRING_UNREADABLE: explained(
        "Keyring unreadable", "The keyring cannot be read.", Place.PUBLICATION
    ),
    Code.NOTE_MALFORMED: explained(
        "Checkpoint malformed", "The signed checkpoint is not of its form.", Place.LEDGER
    ),
    Code.NOTE_UNSIGNED: explained(
        "Checkpoint unsigned", "No key of the keyring signed the checkpoint.", Place.LEDGER
    ),
    Code.NOTE_SIGNATURE: explained(
        "Checkpoint signature invalid",
        "The checkpoint has a signature of a known key that does not verify.",
        Place.LEDGER,
    ),
}

# Append-only logs: a machine's own, and those that are published.
LEDGERS: dict[Code, Reason] = {
    Code.LEDGER_MALFORMED: explained(
        "Ledger malformed", "A line of the ledger is not of its form.", Place.LEDGER
    ),
    Code.LEDGER_NOT_INCLUDED: explained(
        "Not in the ledger", "The plan or row does not stand in the ledger that was signed.", Place.LEDGER
    ),
    Code.LEDGER_OTHER_LOG: explained(
        "Another log", "The two checkpoints are of two different logs.", Place.LEDGER
    ),
    Code.LEDGER_SHRUNK: explained(
        "Ledger has shrunk",
        "The ledger has fewer entries than a checkpoint of it that was signed before.",
        Place.LEDGER,
    ),
    Code.LEDGER_REWRITTEN: explained(
        "Ledger rewritten",
        "Entries of the ledger were altered or removed since they were signed.",
        Place.LEDGER,
    ),
    Code.LEDGER_SIGNER_RETIRED: explained(
        "Log goes on past its key", "The log has entries from after its key was retired.", Place.LEDGER
    ),
    Code.LEDGER_SIGNER_UNKNOWN: explained(
        "Publisher unknown", "The keyring lists no publisher of this log.", Place.LEDGER
    ),
    Code.LEDGER_SIZE: explained(
        "Checkpoint too short", "The checkpoint does not cover every entry of the log.", Place.LEDGER
    ),
    Code.LEDGER_PLAN_TWICE: explained("Run planned twice", "One run has two plans in the log.", Place.LEDGER),
    Code.LEDGER_RUN_TWICE: explained("Run in two logs", "One run stands in more than one log.", Place.LEDGER),
    Code.LEDGER_ROW_TWICE: explained(
        "Row entered twice", "One row stands in the logs more than once.", Place.LEDGER
    ),
    Code.LEDGER_ROW_DIFFERS: explained(
        "Row differs from the log", "The log holds another row under this id.", Place.LEDGER
    ),
    Code.LEDGER_PLAN_DIFFERS: explained(
        "Plan differs from the log", "The log holds another plan for this row.", Place.LEDGER
    ),
    Code.LEDGER_RETRACTION_DIFFERS: explained(
        "Retraction differs from the log",
        "What a row says of its retraction is not what the log says.",
        Place.LEDGER,
    ),
    Code.LEDGER_SUPERSESSION_DIFFERS: explained(
        "Replacement differs from the log",
        "What a row says of its successor is not what the log says.",
        Place.LEDGER,
    ),
    Code.LEDGER_FIELD: explained(
        "Field that is not public", "An entry of the log has a field that may not be published.", Place.LEDGER
    ),
    Code.LEDGER_ROW_WITHOUT_PLAN: explained(
        "Row without a plan",
        "A row of the log resolves no plan of its own run that stands before it.",
        Place.LEDGER,
    ),
    Code.LEDGER_JOURNEY: explained(
        "Journey out of place",
        "An entry of the log belongs to a journey that was not opened so, or may not stand in a journey's "
        "log.",
        Place.LEDGER,
    ),
    Code.LEDGER_KEY_TRUSTED: explained(
        "Retired key still trusted",
        "The keyring in conf/trust trusts a key for entries after the one with which a log retired it.",
        Place.LEDGER,
    ),
    Code.LEDGER_STRAY: explained(
        "Stray file", "Among the published logs lies something that belongs to none of them.", Place.LEDGER
    ),
    Code.LEDGER_INCOMPLETE: explained(
        "Log incomplete", "A published log lacks its entries or its checkpoint.", Place.LEDGER
    ),
    Code.LEDGER_FOLDER_NAME: explained(
        "Log misnamed", "A published log does not lie under the name of its key.", Place.LEDGER
    ),
    Code.ROW_NOT_IN_LEDGER: explained(
        "Row in no log", "A published row stands in no published log.", Place.LEDGER
    ),
}
