"""What a straightforward script does with the same frames: websockets → json.loads → `table.append` of PyIceberg.

It acks on receipt, holds nothing on disk until it appends, and knows no duplicates: it promises far less, and dolake's
throughput is reported as a multiple of its. Runs as a process of its own, `python -m bench.baseline DIRECTORY`.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from bench.events import COLUMNS, TABLE, frames
from bench.sender import Connection

APPEND_EVENTS = 20_000
WINDOW = 32


async def serve(directory: Path) -> None:
    import pyarrow as pa
    from pyiceberg.catalog.sql import SqlCatalog
    from websockets.asyncio.server import ServerConnection, serve

    types = {
        "long": pa.int64(),
        "int": pa.int32(),
        "double": pa.float64(),
        "string": pa.string(),
        "boolean": pa.bool_(),
        "timestamptz": pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    catalog = SqlCatalog("baseline", uri=f"sqlite:///{directory}/catalog.db", warehouse=f"file://{directory}/warehouse")
    catalog.create_namespace("bench")
    table = catalog.create_table(TABLE, schema)

    async def handle(socket: ServerConnection) -> None:
        rows: list[dict[str, Any]] = []
        async for frame in socket:
            message = json.loads(frame)
            if message["type"] == "connect":
                await socket.send('{"type":"status"}')
                continue
            for event in message.get("events", ()):
                row = event["after"]
                row["created_at"] = datetime.datetime.fromisoformat(row["created_at"])
                rows.append(row)
            if message["type"] == "flush_request" or len(rows) >= APPEND_EVENTS:
                if rows:
                    table.append(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()
            if message["type"] == "flush_request":
                await socket.send('{"type":"flush_response","result":{"success":true}}')
            else:
                await socket.send(f'{{"type":"ack","status":"ok","sequenceNumber":{message["sequenceNumber"]}}}')

    async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


async def measure(port: int, event_count: int, batch_events: int) -> dict[str, Any]:
    prepared = frames(event_count, batch_events)
    connection = await Connection.open(f"ws://127.0.0.1:{port}/")
    await connection.greet()
    began = time.monotonic()
    await connection.send_window(prepared, WINDOW)
    await connection.flush()
    seconds = time.monotonic() - began
    connection.close()
    return {"events": event_count, "append_events": APPEND_EVENTS, "committed_events_per_s": round(event_count / seconds)}


def baseline(directory: Path, event_count: int, batch_events: int) -> dict[str, Any]:
    place = directory / "baseline"
    place.mkdir(parents=True)
    command = [sys.executable, "-m", "bench.baseline", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            return asyncio.run(measure(int(server.stdout.readline()), event_count, batch_events))
        finally:
            server.terminate()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asyncio.run(serve(Path(sys.argv[1])))
