"""The ingest process: its doors, its sockets, and how it ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import structlog

from dolake.auth.gate import Gate
from dolake.cdc.relay import RelayServer
from dolake.cdc.server import CdcServer, ServerPolicy
from dolake.clock import Runtime, real_runtime
from dolake.config import Settings
from dolake.control import ControlHub
from dolake.ingest.asks import Asks
from dolake.ingest.posting import PostDesk
from dolake.ingest.service import IngestService
from dolake.storage.disk import LocalDisk

FRAME_PAYLOADS_MAX = 4  # A frame above this many times the payload limit closes the connection unread.

logger = structlog.get_logger("dolake.ingest")


async def run_ingest(
    settings: Settings,
    *,
    listen: socket.socket,
    ready: Callable[[], None],
    stop: asyncio.Event,
    runtime: Runtime | None = None,
    gate: Gate | None = None,
) -> int:
    """Takes batches on `listen` into the logs until `stop`, or raises why no log is left. Says `ready` when it can ack.

    `gate` knows who may come in; unless given, the settings say it once and for all.
    """
    runtime = runtime or real_runtime()
    os.makedirs(settings.data, exist_ok=True)
    service = IngestService(runtime, LocalDisk(), settings, gate)
    await service.start()
    hub = ControlHub(settings.control_path, runtime=runtime, receive=service.hear, answer=Asks(service).answer)
    frame_bytes_max = FRAME_PAYLOADS_MAX * settings.limits.payload_bytes
    server = CdcServer(runtime, service.connect, ServerPolicy(frame_bytes_max=frame_bytes_max), service.gate, service.metrics)
    relay = RelayServer(settings.relay_path, runtime, PostDesk(service).answer, frame_bytes_max)
    try:
        await hub.start()
        service.writer_line = hub
        await relay.start()
        await server.start(listen)
        ready()
        await _first(stop, service.ended)
    finally:
        server.stop_accepting()
        await service.stop()
        await relay.close()
        await server.close()
        await hub.close()
    return 0


async def _first(stop: asyncio.Event, ended: asyncio.Future[None]) -> None:
    """Returns when asked to stop; raises why the service has ended by itself."""
    stopping = asyncio.create_task(stop.wait())
    try:
        waiting: set[asyncio.Future[Any]] = {stopping, ended}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    if ended.done():
        ended.result()
