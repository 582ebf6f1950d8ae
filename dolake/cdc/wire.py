"""The shapes of the wire protocol's messages: what their fields are called and which values each may have.

Structs for msgspec, which checks while it decodes. Rules that a struct cannot say are in `message`; the same rules in words,
for telling a source what is wrong, are in `validation`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from dolake.cdc.validation import INT64_MAX, NAME_MAX, TIME_MS_MAX

Number = Annotated[int, Meta(ge=0, le=INT64_MAX)]
NumberOrNone = Annotated[int, Meta(ge=-1, le=INT64_MAX)]  # -1: none yet
Positive = Annotated[int, Meta(ge=1, le=INT64_MAX)]
TimeMs = Annotated[int, Meta(ge=0, le=TIME_MS_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_MAX)]
Text = Annotated[str, Meta(max_length=NAME_MAX)]


class Wire(Struct, tag_field="type", rename="camel", kw_only=True, gc=False):
    correlation_id: Text | UnsetType = UNSET


class Capabilities(Struct, rename="camel", kw_only=True):
    binary_protocol: bool
    compression: bool
    batching: bool
    max_batch_size: Positive
    max_message_size: Positive


class Connect(Wire, tag="connect"):
    timestamp: TimeMs
    source_do_id: Name
    last_ack_sequence: NumberOrNone
    protocol_version: Number
    capabilities: Capabilities
    source_shard_name: Text | UnsetType = UNSET
    epoch: Text = ""
    ack_persisted: bool = False


class Heartbeat(Wire, tag="heartbeat"):
    timestamp: TimeMs
    source_do_id: Name
    last_ack_sequence: NumberOrNone
    pending_events: Number


class FlushRequest(Wire, tag="flush_request"):
    timestamp: TimeMs
    source_do_id: Name
    reason: Literal["manual", "shutdown", "buffer_full", "time_threshold"]


class Disconnect(Wire, tag="disconnect"):
    timestamp: TimeMs
    reason: Text | UnsetType = UNSET
    source_do_id: Name | UnsetType = UNSET


class Transaction(Struct, kw_only=True):
    id: Name
    last: bool


class Column(Struct, rename="camel", kw_only=True):
    name: Name
    type: str
    nullable: bool
    default: Raw | UnsetType = UNSET
    renamed_from: Name | UnsetType = UNSET


class SchemaEnvelope(Wire, tag="schema"):
    source_do_id: Name
    sequence_number: Number
    table: str
    primary_key: Raw
    columns: Raw
    timestamp: TimeMs | UnsetType = UNSET
    epoch: Text | UnsetType = UNSET


class BatchEnvelope(Wire, tag="cdc_batch"):
    """A batch with its events still as they were sent."""

    timestamp: TimeMs
    source_do_id: Name
    events: Raw
    sequence_number: Number
    first_event_sequence: NumberOrNone
    last_event_sequence: NumberOrNone
    size_bytes: Number
    is_retry: bool
    retry_count: Number
    source_shard_name: Text | UnsetType = UNSET
    epoch: Text | UnsetType = UNSET
    transaction: Transaction | UnsetType = UNSET


class Row(Struct, frozen=True, gc=False):
    """Any object: its fields are skipped, but must be JSON."""


class Metadata(Struct, rename="camel", kw_only=True, gc=False):
    lsn: Text | int | UnsetType = UNSET
    transaction_id: Text | int | UnsetType = UNSET
    unchanged: list[str] | UnsetType = UNSET


class Event(Struct, rename="camel", gc=False):
    sequence: Number
    timestamp: TimeMs
    operation: Literal["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    table: str
    row_id: str | UnsetType = UNSET
    before: Row | None = None
    after: Row | None = None
    metadata: Metadata | UnsetType = UNSET


class OnlyEvents(Struct):
    events: list[Raw]


class Tabled(Struct, gc=False):
    table: str


class OnlyTables(Struct):
    events: list[Tabled]


class ReplayedLetters(Struct):
    """Whose events a batch of dead letters sent again holds, and where each lay first: (log, offset, index)."""

    source: str
    epoch: str
    places: list[tuple[str, int, int]]


class OnlyLetters(Struct):
    letters: ReplayedLetters | None = None


class OnlyIdentity(Struct, rename="camel"):
    type: str = ""
    sequence_number: Number = 0
    correlation_id: str | None = None
