"""Why a run ended as it did: its rental, its legs, and the rules by which a row counts."""

from __future__ import annotations

from glasshouse.codes import Code
from glasshouse.reasons.entry import Place, Reason, demanded, explained

# Why no leg could begin, or why the run was stopped.
BEFORE_LEGS: dict[Code, Reason] = {
    Code.INTERRUPTED: explained(
        "Interrupted",
        "The operator stopped the run; what had been rented was still given back and recorded.",
        Place.CONTROLLER,
    ),
    Code.CONTROLLER_KILLED: explained(
        "Controller died", "The controlling process died; the reaper gave the machine back.", Place.CONTROLLER
    ),
    Code.OUTPUTS_FETCHED_LATE: explained(
        "Outputs fetched after its controller died",
        "What the run had sealed for its owner was fetched from the machine before that was given back, by "
        "the watchdog or by `reap`, and is what the leg signed. Nobody followed the leg to its end.",
        Place.CONTROLLER,
    ),
    Code.JOURNAL_FAILED: explained(
        "Intent not written down",
        "The intent could not be written down, so nothing was rented.",
        Place.CONTROLLER,
    ),
    Code.WATCHDOG_NOT_STARTED: explained(
        "No watchdog",
        "The process that would give the machine back if the controller died did not start, so nothing was "
        "rented.",
        Place.CONTROLLER,
        exit_status=3,
    ),
    Code.SWEEP_STOPPED: explained(
        "Sweep stopped",
        "A machine of another run of the sweep may have been left, so no further one was rented.",
        Place.CONTROLLER,
        exit_status=3,
    ),
    Code.AUTH: explained("Key refused", "The provider refused the key.", Place.PROVIDER, exit_status=3),
    Code.BALANCE: explained(
        "No credit", "The provider's account had no credit left.", Place.PROVIDER, exit_status=3
    ),
    Code.NO_CAPACITY: explained(
        "No such GPU to be had",
        "The provider had no such GPU at an accepted price.",
        Place.PROVIDER,
        exit_status=3,
    ),
    Code.GPU_UNKNOWN: explained(
        "GPU not known", "The provider knows no GPU by the name in the config.", Place.PROVIDER, exit_status=3
    ),
    Code.PRICE_ABOVE_CEILING: explained(
        "Too expensive", "The machine cost more than the config accepts.", Place.PROVIDER, exit_status=3
    ),
    Code.OUTCOME_UNKNOWN: explained(
        "Not known whether it was rented",
        "Whether the provider created a machine, or a leg ended, could not be read.",
        Place.PROVIDER,
        exit_status=3,
    ),
    Code.PROVIDER_UNAVAILABLE: explained(
        "No answer", "The provider did not answer, or only with errors.", Place.PROVIDER, exit_status=3
    ),
    Code.RATE_LIMITED: explained(
        "Too many requests",
        "The provider refused further requests for the time being.",
        Place.PROVIDER,
        exit_status=3,
    ),
    Code.REJECTED: explained(
        "Request refused", "The provider refused the request.", Place.PROVIDER, exit_status=3
    ),
    Code.GPU_MISMATCH: explained(
        "Another GPU",
        "The GPU is another than the one asked for: the provider gave another, or a leg's evidence names "
        "another.",
        Place.PROVIDER,
        Place.ATTESTATION,
        exit_status=3,
    ),
    Code.BOOT_FAILED: explained(
        "Did not come up", "The machine failed while it came up.", Place.BOOT, exit_status=3
    ),
    Code.BOOT_TIMEOUT: explained(
        "Too slow to come up", "The machine did not come up before its deadline.", Place.BOOT, exit_status=3
    ),
    Code.SSH_UNREACHABLE: explained(
        "No SSH server", "The machine ran, but no SSH server answered on it.", Place.BOOT, exit_status=3
    ),
    Code.CONNECT_FAILED: explained(
        "Not reached", "The machine was up but could not be reached.", Place.BOOT, exit_status=3
    ),
    Code.LOGIN_REFUSED: explained(
        "Login refused",
        "The machine's SSH server did not accept our key.",
        Place.BOOT,
        Place.CONNECTION,
        exit_status=3,
    ),
    Code.HOST_KEY_MISMATCH: explained(
        "Another host key",
        "The machine showed an SSH host key that is neither ours nor in its log, nor the one that was "
        "pinned for it.",
        Place.BOOT,
        Place.CONNECTION,
        exit_status=3,
    ),
    Code.RENTAL_DEADLINE: explained(
        "Rental over",
        "The time that was budgeted for the whole rental had passed.",
        Place.CONNECTION,
        Place.LEG,
        exit_status=3,
    ),
    Code.MACHINE_TAKEN_AWAY: explained(
        "Taken away",
        "The machine was an interruptible one, and the provider stopped it. The job goes on from its last "
        "checkpoint, as a run of its own.",
        Place.CONNECTION,
        Place.LEG,
        exit_status=3,
    ),
    Code.POD_SETUP_FAILED: explained(
        "Setup failed",
        "The machine was reached but could not be made ready for the legs.",
        Place.SETUP,
        exit_status=3,
    ),
    Code.PYTHON_UNUSABLE: explained(
        "No usable Python", "The machine had no Python that the runtime can use.", Place.SETUP, exit_status=3
    ),
    Code.TORCH_MISSING: explained(
        "No torch", "The machine's Python had no torch that works.", Place.SETUP, exit_status=3
    ),
    Code.TORCH_ARCHITECTURE: explained(
        "torch built for other GPUs",
        "The machine's torch has no kernels for its GPU.",
        Place.SETUP,
        exit_status=3,
    ),
    Code.GPU_PROBE_FAILED: explained(
        "GPU unusable", "The machine's GPU could not be used as it is.", Place.SETUP, exit_status=3
    ),
    Code.LIBRARIES_MISSING: explained(
        "Libraries missing",
        "The machine, which is not rented, lacked libraries that the legs need.",
        Place.SETUP,
        exit_status=3,
    ),
    Code.INSTALL_FAILED: explained(
        "Installation failed",
        "The pinned libraries could not be installed on the machine.",
        Place.SETUP,
        exit_status=3,
    ),
    Code.RUNTIME_ALTERED: explained(
        "Runtime altered", "The runtime archive on the machine was not the one sent.", Place.SETUP
    ),
    Code.SEAL_FAILED: explained("Not sealed", "The package could not be sealed.", Place.SEALING),
    Code.UPLOAD_FAILED: explained(
        "Not uploaded", "The package did not reach the machine whole.", Place.UPLOAD, exit_status=3
    ),
    Code.EVIDENCE_UNUSABLE: explained(
        "Evidence unusable", "What the legs left did not make evidence that verifies.", Place.RECORD
    ),
    Code.LEG_FAILED: explained(
        "Unforeseen fault", "The legs met a fault that has no code of its own.", Place.LEG
    ),
}

# How a leg ended, or why it never began.
LEGS: dict[Code, Reason] = {
    Code.START_UNKNOWN: explained(
        "Launch not confirmed", "The connection died while a leg was launched.", Place.LAUNCH
    ),
    Code.RUNTIME_NOT_STARTED: explained(
        "Runtime not started", "The runtime did not start on the machine.", Place.LAUNCH
    ),
    Code.POD_UNREACHABLE: explained(
        "Machine lost", "The machine stopped answering while a leg ran.", Place.LEG
    ),
    Code.CONNECTION_LOST: explained(
        "Connection lost",
        "The connection to the machine was cut, and again after it had been opened anew.",
        Place.CONNECTION,
        Place.LEG,
    ),
    Code.FORWARD_REFUSED: explained(
        "No way to the broker",
        "The machine's SSH server refuses to forward a port, by which a leg reaches the key broker.",
        Place.CONNECTION,
        Place.LEG,
        exit_status=3,
    ),
    Code.POD_DISK_FULL: explained(
        "Disk full",
        "The machine had no room left for what the run puts there.",
        Place.SETUP,
        Place.UPLOAD,
        Place.LEG,
        exit_status=3,
    ),
    Code.NO_ROOM_AT_HOME: explained(
        "No room here",
        "The disk of the controller's computer had no room for what the leg had sealed: the sealed outputs "
        "were lost with the machine.",
        Place.LEG,
        exit_status=3,
    ),
    Code.POD_REFUSED: explained(
        "Refused by the machine",
        "The machine was reached, and something that a leg needs of it failed there: a command, or a file "
        "that it did not take or give.",
        Place.LEG,
    ),
    Code.FILE_DAMAGED: explained(
        "File damaged",
        "A file arrived with other bytes than it was sent with.",
        Place.UPLOAD,
        Place.LEG,
        exit_status=3,
    ),
    Code.LOST_LEG: explained("Leg vanished", "The leg's process vanished without a result.", Place.LEG),
    Code.LEG_DEADLINE: explained("Too slow", "The leg did not finish before its deadline.", Place.LEG),
    Code.TERMINATED: explained("Told to end", "The leg was told to end from outside.", Place.LEG),
    Code.ATTESTATION_REFUSED: explained(
        "Evidence refused",
        "The key broker did not accept the launch's evidence, so no key was released.",
        Place.ATTESTATION,
    ),
    Code.UNSEAL_FAILED: explained(
        "Package not opened", "The sealed package did not open on the machine.", Place.SEALING
    ),
    Code.NETWORK_NOT_CLOSED: explained(
        "Network not closed",
        "The machine offers neither a network of the job's own nor a filter of system calls, so nothing "
        "would keep the job from the network.",
        Place.LEG,
    ),
    Code.RANKS_CANNOT_MEET: explained(
        "Ranks cannot meet",
        "The command starts several processes that train together, and the machine allows no network of the "
        "job's own in which they could meet: there a job may make no socket.",
        Place.SETUP,
    ),
    Code.READS_NOT_CONFINED: explained(
        "Reading not confined",
        "The policy asks that the job reads nothing of the machine but what it needs, and the machine offers "
        "neither Landlock nor another root folder.",
        Place.LEG,
    ),
    Code.EXECS_NOT_REFUSED: explained(
        "Starting programs not refused",
        "The policy asks that the job starts no program, and the machine's kernel has no filter of system "
        "calls that would refuse it.",
        Place.LEG,
    ),
    Code.SCRATCH_NOT_MEMORY: explained(
        "No memory to write to",
        "The machine has no folder that lies in memory, and a project's files are never written to a disk.",
        Place.LEG,
    ),
    Code.SCRATCH_TOO_SMALL: explained(
        "Too little memory for the project",
        "The machine's shared memory, where a project's files are written, or all the memory that it has, is "
        "smaller than they are.",
        Place.SETUP,
        Place.LEG,
    ),
    Code.PROJECT_NOT_WRITTEN: explained(
        "No room for the project",
        "The project's files could not be written into the scratch folder on the machine, which is memory; "
        "the sealed log says which.",
        Place.LEG,
    ),
    Code.DEPENDENCIES_UNMET: explained(
        "Dependencies not met",
        "What a project says it needs, and the machine does not have, could not be brought along.",
        Place.SETUP,
        Place.LEG,
    ),
    Code.LANDLOCK_INEFFECTIVE: explained(
        "Landlock without effect", "Landlock was set up and did not confine the training process.", Place.LEG
    ),
    Code.TRAINER_NOT_HARDENED: explained(
        "Not hardened", "The training process could not be hardened as the policy asks.", Place.LEG
    ),
    Code.CUDA_UNAVAILABLE: explained(
        "No CUDA", "The machine has an NVIDIA GPU, and its driver did not open CUDA for the leg.", Place.LEG
    ),
    Code.STEPS_NOT_WHOLE_UNITS: explained(
        "Steps that end inside a unit",
        "The workload does several optimizer steps in one go and has no way to do fewer, and the steps asked "
        "for are no whole number of those.",
        Place.LEG,
    ),
    Code.WARMUP_NOT_UNDONE: explained(
        "Warm-up not undone",
        "What was to be measured did not begin where the leg had begun, before it warmed up: the workload "
        "puts back less than it trains with, or begins differently each time it is made.",
        Place.LEG,
    ),
    Code.WORKLOAD_NOT_CALLABLE: explained(
        "Nothing to call", "The workload's entry names nothing that can be called.", Place.LEG
    ),
    Code.WORKLOAD_ERROR: explained(
        "Workload failed", "The workload raised an error; its log is sealed for its owner.", Place.LEG
    ),
    Code.PROCESS_DIED: explained(
        "Process died", "A process of the leg ended before it had done its part.", Place.LEG
    ),
    Code.PROCESS_STUCK: explained(
        "Process stuck", "A process of the leg did not end when it was told to.", Place.LEG
    ),
    Code.RANK_FAILED: explained(
        "Rank failed", "One of the leg's processes, one a GPU, did not end well.", Place.LEG
    ),
    Code.RUNTIME_TIMEOUT: explained(
        "No answer in time", "A process of the leg did not answer in time.", Place.LEG
    ),
    Code.RUNTIME_OS_ERROR: explained(
        "System refused",
        "The machine's system refused what the leg needs: memory, disk or a descriptor.",
        Place.LEG,
    ),
    Code.RUNTIME_ERROR: explained(
        "Unforeseen fault on the machine", "The leg met a fault that has no code of its own.", Place.LEG
    ),
    Code.MESSAGE_TOO_LARGE: explained(
        "Message too large", "A process of the leg said more at once than a message may hold.", Place.LEG
    ),
    Code.SEALING_FAILED: explained(
        "Outputs not sealed", "The outputs could not be sealed for their owner.", Place.LEG
    ),
    Code.OUTPUTS_ALTERED: explained(
        "Outputs altered", "The outputs on the machine's disk were not those that had been sealed.", Place.LEG
    ),
    Code.RESULT_MALFORMED: explained("Result unreadable", "The leg's result could not be read.", Place.LEG),
    Code.RAW_FILES_INCOMPLETE: explained(
        "Raw files incomplete",
        "The raw leg's files did not arrive whole.",
        Place.LEG,
        until="decision 0040",
    ),
    Code.RAW_FILES_LEFT: explained(
        "Raw files left", "What a raw leg wrote could not be removed from the machine.", Place.LEG
    ),
    Code.EVENT_TOO_LARGE: explained(
        "Event too large", "The leg reported something larger than an event may be.", Place.EVENTS
    ),
    Code.TOO_MANY_EVENTS: explained("Too many events", "The leg reported without end.", Place.EVENTS),
}

# What must hold for a row to count; each is the code of a rule in judgement/rules.py.
RULES: dict[Code, Reason] = {
    Code.RAW_INCOMPLETE: demanded(
        "Raw legs incomplete", "every planned raw slot has a result", Place.JUDGEMENT, Place.LEG
    ),
    Code.PROTECTED_INCOMPLETE: demanded(
        "Protected legs incomplete", "every planned protected slot has a result", Place.JUDGEMENT, Place.LEG
    ),
    Code.ATTESTATION_NOT_VERIFIED: demanded(
        "Attestation not verified",
        "every planned protected leg's evidence was appraised, released to, and verifies again offline",
        Place.JUDGEMENT,
        Place.ATTESTATION,
    ),
    Code.EVENT_CHAIN_BROKEN: demanded(
        "Events not whole",
        "every protected leg's events are whole: signed, linked to the grant, countersigned",
        Place.JUDGEMENT,
        Place.EVENTS,
    ),
    Code.RUNTIME_NOT_ZEROIZED: demanded(
        "Wipe not shown",
        "wherever a payload was released, buffers were wiped and read back and its processes reaped",
        Place.JUDGEMENT,
        Place.WIPE,
    ),
    Code.RAW_FILES_NOT_REMOVED: demanded(
        "Raw files not removed in time",
        "files of raw slots were gone before the next slot",
        Place.JUDGEMENT,
        Place.WIPE,
    ),
    Code.CLEANUP_NOT_PROVEN: demanded(
        "Cleanup not proven",
        "nothing of the run is left at the provider or on the host",
        Place.JUDGEMENT,
        Place.RELEASE,
        exit_status=4,
    ),
    Code.SAME_MACHINE_NOT_PROVEN: demanded(
        "Not shown to be one machine", "all legs saw one boot, one allocation, the same GPUs", Place.JUDGEMENT
    ),
    Code.GPU_NOT_AS_ASKED: demanded(
        "GPU not as asked", "the GPUs are those the config asked for", Place.JUDGEMENT, Place.SETUP
    ),
    Code.WORKLOAD_DIGEST_MISMATCH: demanded(
        "Different workloads", "all legs ran the same workload files", Place.JUDGEMENT
    ),
    Code.INITIAL_WEIGHTS_MISMATCH: demanded(
        "Different beginnings", "all legs began with the same weights", Place.JUDGEMENT
    ),
    Code.JOB_FAILED: demanded(
        "The job failed",
        "a job came to its own end: a project's command with exit code 0, any other before its ceiling",
        Place.JUDGEMENT,
    ),
    Code.OUTPUTS_LEFT_OUT: demanded(
        "Outputs left out",
        "every file that a project left in its outputs' folder could be sealed for its owner; all together "
        "may be 63 GiB",
        Place.JUDGEMENT,
    ),
    Code.RUNTIME_NOT_ENDED: demanded(
        "End of the job not shown",
        "wherever a project was released, its processes were reaped, its scratch folder removed and its "
        "package overwritten and read back",
        Place.JUDGEMENT,
        Place.WIPE,
    ),
    Code.POLICY_NOT_KEPT: demanded(
        "Policy not kept",
        "where the policy asks for it, what a project read was confined, and it is shown to have started no "
        "program",
        Place.JUDGEMENT,
    ),
    Code.FINAL_LOSS_MISSING: demanded("No final loss", "every leg reports its final loss", Place.JUDGEMENT),
    Code.NON_FINITE_LOSS: demanded(
        "Loss not finite", "every loss is a finite number", Place.JUDGEMENT, Place.LEG
    ),
    Code.ADAPTER_UNCHANGED: demanded(
        "Nothing learned", "every leg's final weights differ from its initial ones", Place.JUDGEMENT
    ),
    Code.ADAPTER_DIGESTS_EQUAL: demanded(
        "Equal adapters",
        "the two arms' adapters differ, unless equal steps in a deterministic mode explain it",
        Place.JUDGEMENT,
    ),
    Code.DURATION_OUT_OF_TOLERANCE: demanded(
        "Time not as planned", "every slot measured the time that was planned", Place.JUDGEMENT
    ),
    Code.STEPS_NOT_AS_PLANNED: demanded(
        "Steps not as planned", "every fixed-step slot did the work that was planned", Place.JUDGEMENT
    ),
}

# What keeps a row that counts out of a headline, beside the caveats that do.
HEADLINES: dict[Code, Reason] = {
    Code.NO_INTERVAL: explained(
        "No interval",
        "The row's overhead has no interval, so it cannot be weighed against others.",
        Place.HEADLINE,
    ),
    Code.ALLOCATION_UNKNOWN: explained(
        "Machine not told apart",
        "What tells this row's machine from others is not known, so it might be counted twice.",
        Place.HEADLINE,
    ),
    Code.ALLOCATION_COUNTED: explained(
        "Machine counted already",
        "An earlier row of the same machine is in the headline, and each machine counts once.",
        Place.HEADLINE,
    ),
}

# A session that a workload builds must have each of these parts (runtime/session.py).
_PARTS = {
    Code.WORKLOAD_LACKS_UNIT: "name for its unit of work",
    Code.WORKLOAD_LACKS_STEPS_PER_UNIT: "number of steps in a unit of work",
    Code.WORKLOAD_LACKS_INFO: "description of its numbers",
    Code.WORKLOAD_LACKS_RUN_UNIT: "function that does a unit of work",
    Code.WORKLOAD_LACKS_SYNCHRONIZE: "function that waits for the GPU",
    Code.WORKLOAD_LACKS_LOSS: "function that gives its loss",
    Code.WORKLOAD_LACKS_TRAINABLE: "function that gives its trained tensors",
    Code.WORKLOAD_LACKS_BUFFERS: "function that gives the tensors to wipe",
}
LEGS |= {
    code: explained(
        f"Workload lacks {code.removeprefix('workload-lacks-').replace('-', '_')}",
        f"The workload's session has no {code.removeprefix('workload-lacks-').replace('-', '_')}: no {part}.",
        Place.LEG,
    )
    for code, part in _PARTS.items()
}
