"""The script that follows a PostgreSQL with pg_recvlogical into a daemon, as a process of a test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from e2e.services.postgres import SCRIPTS, PostgresServer
from tests.harness.daemon import Daemon, children_of, clean_environment


@contextlib.contextmanager
def following(server: PostgresServer, daemon: Daemon, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = clean_environment() | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "lake", "PGPASSWORD": server.password, "PGDATABASE": "postgres",
        "AGAIN_S": "0.1", "STATUS_S": "1", "ROUND_S": "10",
    }  # fmt: skip
    command = [SCRIPTS / "follow_postgres.sh", "database", "--data", str(daemon.data), "--batch-events", "20"]
    with open(output, "ab") as log:
        follower = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield follower
        follower.terminate()
        assert follower.wait(60) == 0, output.read_text()[-3000:]
    finally:
        for pid in children_of(follower.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        follower.kill()
        follower.wait()


def slots(server: PostgresServer) -> list[str]:
    with psycopg.connect(server.uri("postgres")) as connection:
        return [name for (name,) in connection.execute("SELECT slot_name FROM pg_replication_slots")]


def ask(server: PostgresServer, query: str, *values: Any) -> Any:
    """The first value of the first row."""
    with psycopg.connect(server.uri("postgres")) as connection:
        row = connection.execute(query, values).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return row[0]
