"""Every error that dolake raises on purpose.

A class exists only where a caller acts differently. Each carries fields; the sentence is made from them and says the
remedy. `exit_code` is what the command line ends with (design: 0 ok, 1 a breach, 2 usage or configuration,
3 unreachable, 4 corrupt, 5 refused, 6 partly done, 130 interrupted).
"""

from __future__ import annotations

from dataclasses import dataclass


class DolakeError(Exception):
    """Something went wrong that dolake can name."""

    exit_code = 1


@dataclass(frozen=True)
class Mistake:
    """One wrong value: where it is, what it is, which rule it breaks."""

    field: str
    value: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field}: {self.rule} (got {self.value})"


class ConfigurationError(DolakeError):
    """Settings are wrong; nothing was started and nothing was created."""

    exit_code = 2

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes


class InvalidInput(DolakeError):
    """A line of an input file is not what its format says; nothing from it on was sent."""

    exit_code = 2

    def __init__(self, *, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line, self.reason = line, reason


class NotAllSent(DolakeError):
    """A part of the input was sent and is durable; the rest was not, or is not committed. Sending again resumes."""

    exit_code = 6


class OtherStream(DolakeError):
    """The input is not the stream that its source's events have come from so far, or goes back; nothing was taken for what it is not."""

    exit_code = 5


class QueryRefused(DolakeError):
    """SQL that is wrong, or would do more than read. The words are DuckDB's."""

    exit_code = 2


class InvalidMessage(DolakeError):
    """A wire message breaks a rule of the protocol; it is nacked `invalid_format` and left no trace.

    `sequence` and `correlation_id` are what the message claims to be, as far as that could be read.
    """

    def __init__(self, mistakes: list[Mistake], sequence: int = 0, correlation_id: str | None = None) -> None:
        super().__init__("; ".join(str(mistake) for mistake in mistakes))
        self.mistakes, self.sequence, self.correlation_id = mistakes, sequence, correlation_id


class LogCorrupt(DolakeError):
    """Bytes of a log are not what was written. The log stops here; nothing is deleted or skipped."""

    exit_code = 4

    def __init__(self, *, path: str, position: int, end: int, reason: str) -> None:
        super().__init__(
            f"{path}: bytes {position}..{end}: {reason}; restore the file from a copy of this disk, or look with `dolake log inspect`"
        )
        self.path, self.position, self.end, self.reason = path, position, end, reason


class LogRefused(DolakeError):
    """A log directory that must not be used as it is: locked, empty where a log should be, or another log's."""

    exit_code = 5


class LogFailed(DolakeError):
    """The log's disk failed. Writing or syncing: outcome of the last group unknown, the log must be reopened."""


class LogFull(DolakeError):
    """No space left for the log: nothing of the group was kept, the same log goes on when there is room."""


class SourceRefused(DolakeError):
    """A source may not be served: it lives in two logs."""

    exit_code = 5


class CatalogUnreachable(DolakeError):
    """The catalog did not answer, or not in time."""

    exit_code = 3


class MetadataMissing(CatalogUnreachable):
    """The catalog names a metadata file that is not in the warehouse: not yet again, or gone for good."""

    exit_code = 4


class StoreUnreachable(DolakeError):
    """The object store did not answer, or refused: bucket, credentials, endpoint.

    `code` is the store's own word for a refusal (`NoSuchBucket`, `SlowDown`), or `no_answer`, `no_connection`, `no_credentials`.
    """

    exit_code = 3

    def __init__(self, reason: str, *, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


class ObjectMissing(DolakeError):
    """An object is not in the store."""

    exit_code = 4


class ObjectDamaged(DolakeError):
    """An object is not what was put under its name: cut short, or with other bytes. Nothing of it was used."""

    exit_code = 4


class CommitConflict(DolakeError):
    """Somebody else's commit came first: load the table again and look before anything else."""


class TableStopped(DolakeError):
    """A table can take no more rows until somebody looks: fenced, rewound, recreated, or of columns that dolake does not write.

    `field` is what of it is at fault: a column, a setting, a part of its metadata. `rule` is the reason without any row's value.
    """

    exit_code = 5

    def __init__(self, table: str, reason: str, *, field: str = "table", rule: str = "") -> None:
        super().__init__(f"{table}: {reason}")
        self.table, self.reason, self.field, self.rule = table, reason, field, rule or reason


class RewriteRefused(DolakeError):
    """Files are left as they are: one of them is gone, damaged, or has columns that cannot become the table's. Nothing was put."""

    exit_code = 5

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file} is not rewritten: {reason}")
        self.file, self.reason = file, reason


class RewriteFailed(DolakeError):
    """A rewrite ended before it was done. What it has put is named by nobody, unless Spark has committed it; it may be tried again."""

    exit_code = 6


class SparkMissing(DolakeError):
    """No Spark can be called from here, whatever is tried again: something has to be installed first, as `remedy` says."""

    exit_code = 5

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"Spark cannot be called: {reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


def unreadable(error: Exception) -> str:
    """Why a table stops at a file of it that is gone, or is not what was written."""
    return f"a file of it cannot be read: {error}; `dolake verify` says more"


class NoSuchPoint(DolakeError):
    """A table has no snapshot at a point of its history.

    `kind` says why: `future`, `before-first`, `expired`, `unknown` or `ambiguous`. `oldest` is the oldest snapshot of `main`
    that is still there.
    """

    exit_code = 5

    def __init__(self, *, table: str, point: str, kind: str, reason: str, oldest: int | None) -> None:
        super().__init__(f"{table} has nothing at {point} ({kind}): {reason}")
        self.table, self.point, self.kind, self.reason, self.oldest = table, point, kind, reason, oldest


class RefRefused(DolakeError):
    """A tag or a branch is not made, deleted or published: `kind` is `exists`, `missing`, `protected` or `diverged`."""

    exit_code = 5

    def __init__(self, *, table: str, name: str, kind: str, reason: str) -> None:
        super().__init__(f"{table}: {reason}")
        self.table, self.name, self.kind, self.reason = table, name, kind, reason


class Diverged(RefRefused):
    """A branch cannot be published: `main` is not an ancestor of it. Counts are of what each side has and the other has not.

    Rows are those added and those deleted, by the snapshots' own summaries.
    """

    def __init__(self, *, table: str, name: str, main: tuple[int, int, int], branch: tuple[int, int, int]) -> None:
        ours, theirs = (f"{count} snapshots (+{added:,} -{deleted:,} rows)" for count, added, deleted in (main, branch))
        reason = f"main is not an ancestor of branch {name}: main alone has {ours}, the branch alone {theirs}"
        super().__init__(table=table, name=name, kind="diverged", reason=f"{reason}; write the rows to a branch made from main now")
        self.main, self.branch = main, branch


class DaemonUnreachable(DolakeError):
    """No daemon answers for this data directory."""

    exit_code = 3


class RequestRefused(DolakeError):
    """The daemon was reached and declined; its own exit code says which kind of no it is."""

    exit_code = 5

    def __init__(self, reason: str, exit_code: int = 5) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class TtlRefused(DolakeError):
    """Rows of a table cannot expire as the settings want it: nothing is removed until the setting or the table is another.

    `field` is the setting, `value` what it says, `rule` what it breaks.
    """

    exit_code = 5

    def __init__(self, table: str, value: str, rule: str, *, field: str = "ttl.column") -> None:
        super().__init__(f"{table}: {field} {rule} (got {value!r}); change it in [tables], or the column")
        self.table, self.field, self.value, self.rule = table, field, value, rule


class SchemaRejected(DolakeError):
    """A declared column cannot be brought together with its table's: the table goes on with the column it has."""

    exit_code = 5

    def __init__(self, *, table: str, field: str, rule: str) -> None:
        super().__init__(f"{table}: column {field}: {rule}")
        self.table, self.field, self.rule = table, field, rule


class Unauthorized(DolakeError):
    """Nobody knows who this is: no token, a wrong, expired or revoked one. HTTP 401, nack `unauthorized`: come with a good token."""

    exit_code = 5

    def __init__(self, reason: str, *, presented: bool = True) -> None:
        super().__init__(reason)
        self.presented = presented

    @property
    def challenge(self) -> str:
        """The WWW-Authenticate header of the answer (RFC 6750, section 3: no error code where no token was sent)."""
        return 'Bearer realm="dolake"' + (', error="invalid_token"' if self.presented else "")


class Forbidden(DolakeError):
    """It is known who this is, and they may not: HTTP 403, nack `forbidden`. The sentence names what was asked for and the scope."""

    exit_code = 5


class CertificateRefused(DolakeError):
    """TLS did not come about: one side does not trust the other's certificate. Trying again changes nothing."""

    exit_code = 3


class BatchRefused(DolakeError):
    """A daemon will never take this message, however often it is sent: `reason` is the nack's, nothing after it was taken."""

    exit_code = 5

    def __init__(self, *, reason: str, sequence: int, message: str) -> None:
        super().__init__(f"batch {sequence} was refused, {reason}: {message}")
        self.reason, self.sequence, self.message = reason, sequence, message


class SourceTakenOver(DolakeError):
    """Another producer has connected under this source's name: only one may go on."""

    exit_code = 5


class AckedBatchesLost(DolakeError):
    """The daemon has lost batches it had acked (a disk is gone): send again from `first`, under the numbers they had."""

    exit_code = 4

    def __init__(self, *, source: str, first: int, last: int) -> None:
        super().__init__(f"the daemon has lost batches {first}..{last} of source {source!r}, which it had acked; send again from there")
        self.source, self.first, self.last = source, first, last
