"""`[limits]`: what sources may send, how much of it in a second, and how many may come."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from dolake.config.section import Section
from dolake.config.values import GIB, KIB, MIB, Bytes, Count, a_number


class LimitSettings(Section):
    """What a source may send: sizes of one message, and how much in a second."""

    payload_bytes: Annotated[Bytes, Field(ge=KIB, le=GIB)] = Field(default=16 * MIB, description="largest message of a source")
    event_bytes: Annotated[Bytes, Field(ge=64, le=GIB)] = Field(default=MIB, description="largest single event")
    batch_events: Count = Field(default=10_000, description="most events in one batch")
    columns: Annotated[Count, Field(le=2000)] = Field(
        default=1000, description="most columns that a schema message declares, or that events bring a table to"
    )
    connections: Count = Field(default=10_000, description="connections of sources served at once")
    connections_per_address: Count = Field(default=100, description="connections of one address served at once")
    connections_per_s: Count = Field(default=20, description="new connections of one address taken in any second")
    idle_s: Annotated[float, BeforeValidator(a_number), Field(ge=0.1, le=86_400, allow_inf_nan=False)] = Field(
        default=20.0, description="silence after which a connection is asked whether it lives, and after as much again without answer ended"
    )
    messages_per_s: Count = Field(
        default=1000, description="messages that one connection may send in a second, as much as two seconds of them at once"
    )
    events_per_s: Count | None = Field(
        default=None,
        description="events that one connection may send in a second, as much as two seconds of them at once; no limit unless set",
    )
