"""What to do about each answer, close code, error and exit code: the words behind `dolake docs errors`.

A test holds it against the code: whoever adds a reason or an error says here what its reader should do.
"""

from __future__ import annotations

# What an ack's status means: what the source may forget, what it should do.
ACKS: dict[str, tuple[str, str]] = {
    "ok": ("every event of the batch is on disk in the log", "forget the batch"),
    "buffered": ("the same, and the backlog is above 80 %", "forget the batch, wait `suggestedDelayMs` before the next"),
    "duplicate": ("this sequence was durable already; nothing was applied again", "forget the batch"),
    "persisted": (
        "every event up to this sequence is in committed snapshots; only for sources that asked with `ackPersisted`",
        "nothing; downstream may rely on it",
    ),
    "fallback": (
        "durable, while the object store or the catalog is down",
        "forget the batch; an operator should look at `/ready/writer`: the log grows until they are back",
    ),
}

# Nack reason → when it is sent, and what to do. Whether to retry is said by `SHOULD_RETRY` in the code.
NACKS: dict[str, tuple[str, str]] = {
    "invalid_format": (
        "a message is not JSON or breaks a rule; `errorMessage` names each field, its value and the rule",
        "mend the producer; the same bytes are refused for ever. Nothing of the batch was kept",
    ),
    "invalid_sequence": (
        "a gap (`expectedSequence` is given), an epoch that is over, a sequence used for other content or below the first that came",
        "after a gap send again from `expectedSequence`; otherwise the producer has lost its numbering: begin a new `epoch`",
    ),
    "payload_too_large": (
        "the message is above `limits.payload_bytes` (`maxSize`); the third closes the connection with 1008",
        "send smaller batches, or raise the setting",
    ),
    "event_too_large": (
        "one event is above `limits.event_bytes` (`maxSize`)",
        "leave the large column out at the source, or raise the setting",
    ),
    "rate_limited": (
        "the connection sends more messages, or the daemon takes more, than its limits say",
        "wait `retryDelayMs`, send again; put more events into a batch",
    ),
    "load_shedding": (
        "the daemon is short of memory or time and turns away what matters least",
        "wait `retryDelayMs`, send again; if it lasts, more memory, fewer sources, or another daemon",
    ),
    "buffer_full": (
        "the uncommitted backlog has reached `log.backlog_bytes`: nothing is committed, or less than comes in",
        "wait `retryDelayMs`, send again. Operator: `dolake status` says which table holds the log (see *A table has stopped*), "
        "or that store or catalog are down",
    ),
    "storage_full": (
        "the disk of this source's log is full",
        "wait `retryDelayMs`, send again. Operator: make room; nothing is lost and no restart is needed",
    ),
    "degraded": (
        "this source's log has failed and is being recovered, or its disk is gone; the fate of the batch is unknown",
        "wait `retryDelayMs`, send the same bytes again: `ok` or `duplicate` settles it. Operator: see *A log is degraded*",
    ),
    "internal_error": (
        "something that nobody expected, logged with its trace; the fate of the batch is unknown",
        "wait `retryDelayMs`, send the same bytes again; report the log line",
    ),
    "shutting_down": (
        "the daemon is draining after SIGTERM",
        "connect again after `retryDelayMs`, here or elsewhere; nothing of the batch was kept",
    ),
    "unauthorized": (
        "the token is missing, wrong, expired or revoked; also for a connection that was let in before, which is then closed",
        "give the producer a token that is good: `dolake token new`, see *Who may come in*",
    ),
    "forbidden": (
        "the token does not cover this source (closes with 1008) or a table of this batch, which is then refused whole",
        "widen the token's scope and send SIGHUP, or name another source or table",
    ),
    "connection_limit": ("too many new connections at once, or in all", "wait as `Retry-After` says, connect again"),
    "ip_limit": ("too many connections from this address", "share connections, or raise the limit"),
}

# Websocket close codes that the server gives.
CLOSES: dict[int, tuple[str, str]] = {
    1000: ("the source said `disconnect`", "nothing"),
    1001: ("the daemon is stopping, or this source's log is not available", "connect again"),
    1002: ("the first message was not a `connect`, or the websocket protocol was broken", "mend the producer"),
    1008: (
        "a rule was broken again and again, or nothing was said in time; or the token is not (any longer) good for this",
        "mend the producer; or see `unauthorized`, `forbidden`",
    ),
    1009: ("a frame above four times `limits.payload_bytes`, closed unread", "send smaller batches"),
    1011: ("an error that nobody expected, logged with its trace", "connect again; report the log line"),
    1013: ("too much of unfinished messages was in memory, and most of it came by this connection", "connect again; send smaller batches"),
    4409: ("the same source connected again: the newer connection has taken over", "find the second producer if there should be one only"),
}

# Error class → what to do. Its first line of documentation says what happened, its exit code what a command ends with.
ERRORS: dict[str, str] = {
    "ConfigurationError": "change what each line names; nothing was created",
    "InvalidInput": "mend the line that is named and send the file again: what was sent already is not applied twice",
    "NotAllSent": "send the same file again; it resumes where it stopped",
    "OtherStream": "events are resumed by their place in the input: send the whole stream, or what is new under an --epoch of its own",
    "QueryRefused": "change the SQL; only reading is allowed",
    "InvalidMessage": "mend the producer",
    "LogCorrupt": "see *A log is corrupt*: restore the file from a copy of its disk; nothing was deleted or skipped",
    "LogRefused": "do what the sentence says: another process holds it, a disk is not mounted, a file belongs elsewhere",
    "LogFailed": "see *A log is degraded*: the log reopens by itself when its disk answers; nothing acked is lost",
    "LogFull": "make room on the disk that is named; no restart is needed",
    "SourceRefused": "move away the log that is the copy, or let the source go on under another name",
    "CatalogUnreachable": "see *The store or the catalog is down*; acks go on meanwhile",
    "StoreUnreachable": "see *The store or the catalog is down*; check bucket, credentials and endpoint",
    "MetadataMissing": "restore the metadata file that is named: the table goes on by itself when it is there",
    "ObjectMissing": "restore the object that is named: somebody else removed it from the warehouse",
    "ObjectDamaged": "it was read again, in case it was spoilt on its way: bring what is named back from a copy of the warehouse (or of "
    "the catalog); its table stands still until the writer is started again, the others go on. Without a copy: `dolake tables drop`, and "
    "have the source send the table again",
    "CommitConflict": "nothing: the table is loaded again and looked at",
    "TableStopped": "see *A table has stopped*",
    "TtlRefused": "see *Rows that expire*: change `ttl` for this table in [tables], or give it the column; its rows stay meanwhile",
    "RewriteRefused": "nothing was changed and other files are compacted: restore the file that is named, or have the program that wrote "
    "it rewrite it; `dolake verify` says more",
    "RewriteFailed": "nothing: it is tried again; where it was killed for want of memory, lower `compaction.memory_bytes`; of Spark see "
    "*Spark rewrites*",
    "SparkMissing": "install PySpark, in the version of your Spark, where dolake is; or set `compaction.engine` to local",
    "NoSuchPoint": "choose a point that is there: `dolake snapshots TABLE` lists them; `commit.snapshots_kept` and tags keep more",
    "RefRefused": "choose another name: `dolake tags list TABLE` and `dolake branches list TABLE` say which there are",
    "Diverged": "make a branch from `main` as it is now, write the rows to it, and publish that",
    "DaemonUnreachable": "start `dolake serve` on this data directory, or look into its log lines",
    "RequestRefused": "do what the sentence says; the exit code is the one it would have had in the daemon",
    "SchemaRejected": "declare the column with a type that its table's can become, or give it another name",
    "Unauthorized": "give a token that is good, as `DOLAKE_TOKEN` or `--token`; see *Who may come in*",
    "Forbidden": "use a token whose scope covers it; see *Who may come in*",
    "CertificateRefused": "trust the daemon's CA with `--ca`, show a certificate of ours, or renew the one that has expired",
    "BatchRefused": "mend the producer; everything before that batch is durable",
    "SourceTakenOver": "stop the other producer, or give each a source name of its own",
    "AckedBatchesLost": "send again from the batch that is named, under the same numbers; see *A disk was lost*",
}

EXITS: dict[int, tuple[str, str]] = {
    0: ("done", "nothing"),
    1: ("`dolake verify` found a breach; or an error that nobody expected", "read the sentences; report what was not expected"),
    2: ("usage or configuration", "change what the line names; nothing was started or created"),
    3: ("no daemon, store or catalog answers", "start it, or check the network and the credentials"),
    4: ("bytes are not what was written", "see *A log is corrupt*"),
    5: ("refused", "do what the line says first; nothing was changed"),
    6: ("partly done", "run it again: what is done is not done twice"),
    130: ("interrupted by Ctrl-C", "nothing: what was acked stays"),
}
