"""Spark is called from a process of its own, which has pyspark and, without a server, a JVM: both go when it ends.

    parent → child   8 bytes, big-endian: how many follow; then {"settings": …, "statements": […]} as JSON. The pipe stays open
    child → parent   {"done": true}, {"missing": [reason, remedy]} or {"failed": reason}; then the child ends

Nothing is written by this process: Spark commits by itself. What it is at when the child is ended may still be committed, by a server that
goes on; whoever writes the table notices that as any commit of somebody else.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from dolake.clock import real_runtime
from dolake.config import CompactionSettings, Settings
from dolake.errors import RewriteFailed, SparkMissing

_HEADER = struct.Struct(">Q")
_NICENESS = 15  # A session of our own is on this machine: ingest and flushes first.
_CONNECT_PORT = 15002
# A server that does not let anybody in is not waited for as long as its client would, which is minutes.
_REACH_S = 10.0
_RUN_S_MAX = 6 * 3600.0
_SAID_BYTES_MAX = 4096
_REASON_LENGTH_MAX = 600
_EXTENSIONS = "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions"
_CAUSE = "Caused by: "
_REMEDY = "install the version of your Spark where dolake is: pip install 'pyspark[connect]==…'"


async def call_spark(settings: Settings, statements: Sequence[str]) -> None:
    """One after the other. Raises SparkMissing, RewriteFailed; what was done before a failure stays done."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dolake.compaction.spark_process"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        task = json.dumps({"settings": settings.to_json(), "statements": list(statements)}).encode()
        process.stdin.write(_HEADER.pack(len(task)) + task)
        async with asyncio.timeout(_RUN_S_MAX):
            answer, said = await asyncio.gather(process.stdout.read(), _last_said(process.stderr))
            process.stdin.close()
            code = await process.wait()
    except TimeoutError:
        raise RewriteFailed(f"Spark was not done after {_RUN_S_MAX / 3600:.0f} h") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not answer:
        raise RewriteFailed(f"the process that calls Spark ended with {code}: {_in_short(settings.compaction, said)}")
    _take(json.loads(answer))


async def _last_said(stream: asyncio.StreamReader) -> str:
    """Spark says much on stderr; the end of it is for when nothing else tells what went wrong."""
    said = b""
    while part := await stream.read(_SAID_BYTES_MAX):
        said = (said + part)[-_SAID_BYTES_MAX:]
    return said.decode(errors="replace")


def _take(answer: dict[str, Any]) -> None:
    if "missing" in answer:
        raise SparkMissing(*answer["missing"])
    if "failed" in answer:
        raise RewriteFailed(answer["failed"])


# -- the child


def _do(settings: Settings, statements: Sequence[str]) -> dict[str, Any]:
    compaction = settings.compaction
    try:
        if compaction.spark_remote is not None:
            _reach(compaction.spark_remote)
        session = _session(compaction)
        try:
            for statement in statements:
                session.sql(statement).collect()
        finally:
            session.stop()
    except ImportError as error:
        return {"missing": [_in_short(compaction, str(error)), _REMEDY]}
    except Exception as error:  # Of whatever class, by client and version: it is the answer.
        return {"failed": f"{type(error).__name__}: {_in_short(compaction, str(error))}"}
    return {"done": True}


def _reach(remote: str) -> None:
    """Raises OSError where nobody listens."""
    address = urlsplit(remote)
    host, port = str(address.hostname), address.port or _CONNECT_PORT
    try:
        socket.create_connection((host, port), _REACH_S).close()
    except OSError as error:
        raise OSError(f"no Spark Connect server answers at {host}:{port}: {error.strerror or error}") from error


def _session(compaction: CompactionSettings) -> Any:
    from pyspark.sql import SparkSession

    if compaction.spark_remote is not None:
        session = SparkSession.builder.remote(compaction.spark_remote).getOrCreate()
        for name, value in compaction.spark.items():
            session.conf.set(name, value)
        return session
    builder = SparkSession.builder.master(compaction.spark_master or "local[*]").appName("dolake compaction")
    for name, value in {"spark.sql.extensions": _EXTENSIONS, "spark.ui.enabled": "false", **compaction.spark}.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def _in_short(compaction: CompactionSettings, said: str) -> str:
    """On one line without Java's frames, its last cause first, and without what is secret."""
    for secret in compaction.spark_secrets:
        said = said.replace(secret, "…")
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith(("\tat ", "\t..."))]
    causes = [line.removeprefix(_CAUSE) for line in lines if line.startswith(_CAUSE)]
    text = " ".join([*causes[-1:], *(line for line in lines if not line.startswith(_CAUSE))])
    return text if len(text) <= _REASON_LENGTH_MAX else f"{text[:_REASON_LENGTH_MAX]}…"


async def _main(answers: int) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    task = json.loads(await reader.readexactly(size))
    working = loop.create_task(real_runtime().tasks.run(partial(_do, Settings.from_json(task["settings"]), task["statements"])))
    ending = loop.create_task(reader.read(1))
    await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        os.write(answers, json.dumps(working.result()).encode())
    os._exit(0)  # Without waiting for a thread that nobody waits for; a JVM of ours ends when its pipe closes.


if __name__ == "__main__":
    os.nice(_NICENESS)
    kept = os.dup(1)
    os.dup2(2, 1)  # What a JVM of ours prints is no answer.
    asyncio.run(_main(kept))
