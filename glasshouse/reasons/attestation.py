"""Why evidence, a token or a sealed file is refused."""

from __future__ import annotations

from glasshouse.codes import Code, known
from glasshouse.reasons.entry import Place, Reason, explained

# Checks of a leg's evidence; what each one says when it fails.
CLAIMS: dict[Code, Reason] = {
    Code.CLAIM_UNKNOWN: explained(
        "Unknown claim",
        "The evidence holds a claim that this version does not know, and what is not known is not believed.",
        Place.ATTESTATION,
    ),
    Code.CLAIM_MISSING: explained(
        "Claim missing", "The evidence lacks a claim that every leg must make.", Place.ATTESTATION
    ),
    Code.CLAIM_MALFORMED: explained(
        "Claim malformed", "A claim of the evidence is not of its type.", Place.ATTESTATION
    ),
    Code.COMPOSITE_HASH_MISMATCH: explained(
        "Claims altered", "The hash over all claims does not fit the claims.", Place.ATTESTATION
    ),
    Code.NONCE_MISMATCH: explained(
        "Another challenge",
        "The evidence answers another challenge than the one it was sent for.",
        Place.ATTESTATION,
    ),
    Code.CHALLENGE_EXPIRED: explained(
        "Challenge expired", "The challenge was answered after its time.", Place.ATTESTATION
    ),
    Code.STALE_TIMESTAMP: explained(
        "Evidence too old",
        "The evidence is older than the policy allows, or than its own challenge.",
        Place.ATTESTATION,
    ),
    Code.FUTURE_TIMESTAMP: explained(
        "Evidence from the future", "The evidence is dated later than the broker's clock.", Place.ATTESTATION
    ),
    Code.JWT_CLAIM_MISMATCH: explained(
        "Another launch token",
        "The launch token that came with the evidence is not the one issued for this launch.",
        Place.ATTESTATION,
    ),
    Code.EVENT_KEY_MISMATCH: explained(
        "Another event key",
        "The evidence was signed by another key than the one that asked for the challenge.",
        Place.ATTESTATION,
    ),
    Code.RUN_MISMATCH: explained(
        "Another run", "The evidence names another run than the launch it was sent for.", Place.ATTESTATION
    ),
    Code.LEG_MISMATCH: explained(
        "Another leg", "The evidence names another leg than the launch it was sent for.", Place.ATTESTATION
    ),
    Code.LAUNCH_MISMATCH: explained(
        "Another launch",
        "The evidence names another launch of its leg than the one it was sent for.",
        Place.ATTESTATION,
    ),
    Code.ALLOCATION_ID_MISMATCH: explained(
        "Another rental",
        "The evidence names another rental than the one that the controller holds.",
        Place.ATTESTATION,
    ),
    Code.CONTAINER_ID_MISMATCH: explained(
        "Another container",
        "The evidence comes from another container than the one that the controller saw.",
        Place.ATTESTATION,
    ),
    Code.RUNTIME_HASH_MISMATCH: explained(
        "Another runtime",
        "The runtime that asked for the key is not the archive that the controller sent.",
        Place.ATTESTATION,
    ),
    Code.INTERPRETER_HASH_MISMATCH: explained(
        "Another interpreter",
        "The Python that runs the leg is not the file that the controller saw.",
        Place.ATTESTATION,
    ),
    Code.BOOT_ID_MISMATCH: explained(
        "Another boot",
        "The machine was booted again since the controller saw it, or is another machine.",
        Place.ATTESTATION,
    ),
    Code.PID_NAMESPACE_MISMATCH: explained(
        "Another process namespace",
        "The leg runs in another process namespace than the one that the controller saw.",
        Place.ATTESTATION,
    ),
    Code.IMAGE_DIGEST_MISMATCH: explained(
        "Another image",
        "The evidence names another container image than the one that was rented.",
        Place.ATTESTATION,
    ),
    Code.PYTHON_VERSION_MISMATCH: explained(
        "Another Python",
        "The version of Python differs from the one that the controller saw.",
        Place.ATTESTATION,
    ),
    Code.DISTRIBUTIONS_MISMATCH: explained(
        "Other libraries",
        "The installed libraries are not those that the controller listed beforehand.",
        Place.ATTESTATION,
    ),
    Code.EAT_PROFILE_MISMATCH: explained(
        "Another evidence profile",
        "The evidence is of another profile than the one that this version appraises.",
        Place.ATTESTATION,
    ),
    Code.RUNTIME_STATE_SPOOFED: explained(
        "State that cannot be",
        "The runtime claims a state that it cannot be in before a key is released.",
        Place.ATTESTATION,
    ),
    Code.INTERPRETER_NOT_ISOLATED: explained(
        "Interpreter not isolated",
        "Python was not started isolated, so files and variables of the host could change what it runs.",
        Place.ATTESTATION,
    ),
    Code.ANTI_DEBUG_DISABLED: explained(
        "Open to debuggers", "The runtime reports that it can be traced or dumped.", Place.ATTESTATION
    ),
    Code.CORE_DUMPS_ENABLED: explained(
        "Core dumps on", "A crash of the runtime could write its memory to disk.", Place.ATTESTATION
    ),
    Code.NO_NEW_PRIVS_MISSING: explained(
        "Privileges can grow",
        "The runtime can still gain privileges through setuid programs.",
        Place.ATTESTATION,
    ),
    Code.DEBUGGER_ATTACHED: explained(
        "Debugger attached", "A debugger is attached to the runtime.", Place.ATTESTATION
    ),
    Code.SUBREAPER_MISSING: explained(
        "Orphans not collected",
        "Processes that the leg leaves behind would escape its supervisor.",
        Place.ATTESTATION,
    ),
    Code.KEM_KEY_INVALID: explained(
        "No key to wrap to",
        "The evidence's encryption key is no valid X-Wing public key, so nothing can be sealed to it.",
        Place.ATTESTATION,
    ),
    Code.ANTI_DEBUG_PROFILE_DOWNGRADE: explained(
        "Weaker profile", "The leg runs under a weaker profile than the policy demands.", Place.ATTESTATION
    ),
    Code.ANTI_DEBUG_PROFILE_MISMATCH: explained(
        "Another profile", "The leg runs under another profile than the policy's own.", Place.ATTESTATION
    ),
    Code.LANDLOCK_MISSING: explained(
        "No Landlock",
        "The policy asks for Landlock, and the machine's kernel has none.",
        Place.ATTESTATION,
        Place.LEG,
    ),
    Code.LANDLOCK_CLAIM_INCONSISTENT: explained(
        "Landlock claim inconsistent",
        "The evidence claims Landlock and names no version of it.",
        Place.ATTESTATION,
    ),
    Code.MEMFD_SECRET_MISSING: explained(
        "No secret memory",
        "The policy asks for secret memory, and the machine's kernel has none.",
        Place.ATTESTATION,
    ),
    Code.DISTRIBUTIONS_NOT_LISTED: explained(
        "Libraries not listed",
        "The policy asks for the installed libraries to be listed beforehand, and the controller has no "
        "list.",
        Place.ATTESTATION,
    ),
    Code.HOST_KEY_FIRST_USE: explained(
        "Host key taken on trust",
        "The policy does not accept a host key that was believed at first sight.",
        Place.ATTESTATION,
    ),
}

# Tokens that are not of their form.
SIGNED: dict[Code, Reason] = {
    Code.ALGORITHM_NOT_ALLOWED: explained(
        "Algorithm not allowed",
        "A token is not signed with EdDSA, the only algorithm that is accepted.",
        Place.ATTESTATION,
    ),
    Code.FORBIDDEN_HEADER: explained(
        "Forbidden header", "A token's header holds more than algorithm, type and key id.", Place.ATTESTATION
    ),
    Code.TOKEN_TYPE_MISMATCH: explained(
        "Another type of token", "A token is of another type than the message it came in.", Place.ATTESTATION
    ),
    Code.KEY_ID_MISMATCH: explained(
        "Another key",
        "A token names no key, or another key than the one it must be signed with.",
        Place.ATTESTATION,
    ),
}

# What the key broker refuses, and what a leg refuses of its answers.
EXCHANGE: dict[Code, Reason] = {
    Code.TICKET_UNKNOWN: explained(
        "Ticket unknown",
        "The request was not signed with a ticket that this broker issued.",
        Place.ATTESTATION,
    ),
    Code.TICKET_USED: explained(
        "Ticket used", "The ticket was used before; each one serves once.", Place.ATTESTATION
    ),
    Code.TICKET_STORE_MISMATCH: explained(
        "Ticket of another store",
        "The ticket was issued by another store, for example by a backup that was restored.",
        Place.ATTESTATION,
    ),
    Code.TICKET_EXPIRED: explained(
        "Ticket expired", "The ticket was used after its time.", Place.ATTESTATION
    ),
    Code.TICKET_MISMATCH: explained(
        "Ticket of another launch",
        "The ticket was issued for another launch than the one that used it.",
        Place.ATTESTATION,
    ),
    Code.TICKET_ISSUED: explained(
        "Ticket issued already",
        "The launch already has a ticket; a second one is not issued.",
        Place.ATTESTATION,
    ),
    Code.LAUNCH_SUPERSEDED: explained(
        "Launched again since",
        "The leg was launched again since, and only its latest launch may have the key.",
        Place.ATTESTATION,
    ),
    Code.LAUNCH_LIMIT_REACHED: explained(
        "Too many launches", "The leg was launched as often as the policy allows.", Place.ATTESTATION
    ),
    Code.NONCE_UNKNOWN: explained(
        "Challenge unknown",
        "The broker never issued the challenge that the evidence answers.",
        Place.ATTESTATION,
    ),
    Code.NONCE_REPLAY: explained(
        "Challenge answered before",
        "The evidence answers a challenge that was already used.",
        Place.ATTESTATION,
    ),
    Code.CHALLENGE_STORE_MISMATCH: explained(
        "Challenge of another store",
        "The challenge was issued by another store, for example by a backup that was restored.",
        Place.ATTESTATION,
    ),
    Code.GRANT_ISSUED: explained(
        "Grant issued already",
        "The launch already had its grant; a second one is not issued.",
        Place.ATTESTATION,
    ),
    Code.GRANT_LIMIT_REACHED: explained(
        "Too many grants", "The run has had as many grants as it was planned for.", Place.ATTESTATION
    ),
    Code.PAYLOAD_UNKNOWN: explained(
        "Package unknown", "No key is registered with the broker for this package.", Place.ATTESTATION
    ),
    Code.PAYLOAD_UNREADABLE: explained(
        "Package key unreadable",
        "The key that the broker keeps for this package does not open under its own key.",
        Place.ATTESTATION,
    ),
    Code.PAYLOAD_REGISTERED: explained(
        "Package registered already",
        "The package already has a key at the broker; a second one is not taken.",
        Place.ATTESTATION,
    ),
    Code.OPERATOR_UNKNOWN: explained(
        "Operator unknown", "The request is signed by no operator of this broker.", Place.ATTESTATION
    ),
    Code.OPERATOR_MISMATCH: explained(
        "Another operator's package",
        "The package belongs to another operator of the broker.",
        Place.ATTESTATION,
    ),
    Code.BROKER_PROTOCOL_MISMATCH: explained(
        "Broker of another release",
        "The broker is of another release, whose tickets this one does not use.",
        Place.ATTESTATION,
    ),
    Code.BROKER_UNREACHABLE: explained(
        "Broker not reached", "The key broker did not answer the leg.", Place.ATTESTATION
    ),
    Code.BROKER_BUSY: explained(
        "Too many connections",
        "The machine had as many connections to the key broker open as one may have at once, and this one "
        "made room.",
        Place.ATTESTATION,
    ),
    Code.REQUEST_TIMEOUT: explained(
        "Request too slow", "The request to the broker did not come whole in time.", Place.ATTESTATION
    ),
    Code.REQUEST_LIFETIME_EXCEEDED: explained(
        "Request valid for too long",
        "An operator's request says that it is valid for longer than the minute that any may be.",
        Place.ATTESTATION,
    ),
    Code.MALFORMED_ANSWER: explained(
        "Answer malformed", "The broker's answer is not of its form.", Place.ATTESTATION
    ),
    Code.EAR_MISMATCH: explained(
        "Result of other evidence",
        "The attestation result that came back is not about the evidence that was sent.",
        Place.ATTESTATION,
    ),
    Code.GRANT_MISMATCH: explained(
        "Grant of another launch", "The grant that came back is for another launch.", Place.ATTESTATION
    ),
    Code.NOT_FOUND: explained(
        "No such resource", "The broker serves nothing under the path that was asked for.", Place.ATTESTATION
    ),
    Code.METHOD_NOT_ALLOWED: explained(
        "Method not allowed",
        "The broker was asked in another HTTP method than the path's own.",
        Place.ATTESTATION,
    ),
    Code.LENGTH_REQUIRED: explained(
        "No single length",
        "The request to the broker does not say its length once and plainly.",
        Place.ATTESTATION,
    ),
    Code.BODY_TOO_LARGE: explained(
        "Request too large",
        "The request to the broker is larger than any message needs to be.",
        Place.ATTESTATION,
    ),
    Code.UNSUPPORTED_MEDIA_TYPE: explained(
        "Not JSON", "The request to the broker is not declared as JSON.", Place.ATTESTATION
    ),
    Code.INTERNAL_ERROR: explained(
        "Broker failed", "The broker failed while it answered, and released nothing.", Place.ATTESTATION
    ),
    Code.GRANT_INFO_MISMATCH: explained(
        "Grant of another exchange",
        "The grant is not bound to the messages of this exchange.",
        Place.ATTESTATION,
        Place.BUNDLE,
    ),
}

# Sealed packages, outputs and the keys to them.
SEALED: dict[Code, Reason] = {
    Code.MANIFEST_HASH_MISMATCH: explained(
        "Another package",
        "The evidence, or the sealed file, names another sealed package than the one that was registered.",
        Place.SEALING,
        Place.ATTESTATION,
    ),
    Code.CONTAINER_MALFORMED: explained(
        "No sealed container",
        "The file is no sealed container of a version that is known here.",
        Place.SEALING,
    ),
    Code.CONTAINER_TRUNCATED: explained(
        "Container cut short", "The sealed container is shorter than it says itself.", Place.SEALING
    ),
    Code.CONTAINER_TRAILING_BYTES: explained(
        "Container too long", "The sealed container is longer than it says itself.", Place.SEALING
    ),
    Code.CONTAINER_UNREADABLE: explained(
        "Container unreadable", "The sealed file could not be read.", Place.SEALING
    ),
    Code.MANIFEST_MALFORMED: explained(
        "Manifest malformed",
        "The sealed container's own list of what it holds is not of its form.",
        Place.SEALING,
    ),
    Code.MANIFEST_HASH_MALFORMED: explained(
        "No manifest hash", "What was given as the package's hash is none.", Place.SEALING
    ),
    Code.MANIFEST_AUTHENTICATION_FAILED: explained(
        "Manifest altered", "The sealed container's list of what it holds was altered.", Place.SEALING
    ),
    Code.CHUNK_AUTHENTICATION_FAILED: explained(
        "Content altered", "A piece of the sealed container was altered or moved.", Place.SEALING
    ),
    Code.CHUNK_SIZE_MALFORMED: explained(
        "Chunk size out of range", "A container cannot be sealed in pieces of this size.", Place.SEALING
    ),
    Code.KEY_COMMITMENT_MISMATCH: explained(
        "Not the container's key", "The key is not the one that the container was sealed with.", Place.SEALING
    ),
    Code.NAME_DUPLICATE: explained(
        "Name used twice", "Two files or two tensors of one container share a name.", Place.SEALING
    ),
    Code.NAME_MALFORMED: explained(
        "Name not allowed",
        "A name in the container is empty, too long, or no plain relative path.",
        Place.SEALING,
    ),
    Code.TENSOR_MALFORMED: explained(
        "Tensor malformed",
        "A tensor cannot be sealed as it is: its type, its shape or its memory does not fit.",
        Place.SEALING,
    ),
    Code.SOURCE_CHANGED: explained(
        "Changed while sealed", "The tensors or files changed while they were sealed.", Place.SEALING
    ),
    Code.REGION_UNAVAILABLE: explained(
        "No memory for the package",
        "There was no memory into which the package could be opened.",
        Place.SEALING,
    ),
    Code.OUTPUTS_MALFORMED: explained(
        "No sealed outputs",
        "The file holds no sealed outputs of a version that is known here.",
        Place.SEALING,
    ),
    Code.TREE_MALFORMED: explained(
        "No tree of files",
        "What is sealed says that it is a tree of files, and its index or its contents are not.",
        Place.SEALING,
    ),
    Code.CONTEXT_MALFORMED: explained(
        "No context",
        "Outputs are sealed for a run, a leg and a launch, and these were not named.",
        Place.SEALING,
    ),
    Code.KEM_KEY_MALFORMED: explained(
        "No decryption key", "The key to decrypt with is none, is not readable, or was wiped.", Place.SEALING
    ),
    Code.PAYLOAD_KEY_MALFORMED: explained(
        "No payload key", "The package's key is not of its length, or was wiped.", Place.SEALING
    ),
    Code.PAYLOAD_KEY_MISMATCH: explained(
        "Another key came out",
        "In the tamper suite, a grant opened to another key than the package's.",
        Place.SEALING,
    ),
    Code.GRANT_MALFORMED: explained(
        "Grant malformed", "The wrapped key is not of its length.", Place.SEALING
    ),
    Code.GRANT_UNWRAP_FAILED: explained(
        "Grant does not open", "The wrapped key does not open with this key for this exchange.", Place.SEALING
    ),
    Code.INFO_MALFORMED: explained(
        "Exchange not named", "A key is wrapped for one exchange, and none was named.", Place.SEALING
    ),
}

# Every kind of token can fail in the same ways; each has a code for each way that it can be read in.
_TOKENS = {
    "request": "leg's or operator's request",
    "challenge": "broker's challenge",
    "launch": "launch token",
    "evidence": "evidence",
    "ear": "attestation result",
    "grant": "grant",
    "card": "broker's own card",
}
_FAULTS = {
    "malformed-{}": ("Malformed: {}", "The {} is not of its form."),
    "{}-signature-invalid": ("Signature invalid: {}", "The {} is not signed by the key that it names."),
    "{}-not-yet-valid": ("Not valid yet: {}", "The {} is dated later than the clock that it is judged by."),
    "{}-expired": ("Expired: {}", "The {} came after its time."),
    "{}-issuer-mismatch": ("Another issuer: {}", "The {} names another issuer than the key that signed it."),
    "{}-audience-mismatch": ("Another audience: {}", "The {} is meant for another broker or another store."),
}
TOKENS: dict[Code, Reason] = {
    code: explained(title.format(name), text.format(name), Place.ATTESTATION)
    for fault, (title, text) in _FAULTS.items()
    for token, name in _TOKENS.items()
    if (code := known(fault.format(token), None)) is not None and code not in CLAIMS
}
