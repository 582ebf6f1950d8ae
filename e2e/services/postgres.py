"""A real PostgreSQL server for tests: on a free port over a directory of its own, restarted, killed, started again."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psycopg

from e2e.services.s3 import free_port
from tests.harness.waiting import wait_until

SCRIPTS = Path(__file__).parent
USER = "lake"


def install_postgres() -> Path:
    """The directory of the server's programs. Raises RuntimeError with what is missing."""
    done = subprocess.run([SCRIPTS / "install_postgres.sh"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"PostgreSQL could not be installed:\n{done.stderr}")
    return Path(done.stdout.strip())


class PostgresServer:
    """One server. What is committed stays there across `kill` and `start`; the port and the password stay too.

    The server refuses to run as root: it runs as `nobody` then, in a directory that `nobody` may enter, which the tests' own
    temporary folder is not.
    """

    def __init__(self, *, database: str = "postgres", password: str = "", settings: Mapping[str, str] | None = None) -> None:
        """`database` is made with the server; the others are `create`d. `settings` are the server's own."""
        self.directory = Path(tempfile.mkdtemp(prefix="dolake-postgres-", dir="/tmp" if os.geteuid() == 0 else None))
        self.password = password or "pw-" + secrets.token_hex(16)
        self.database = database
        self._settings = dict(settings or {})
        self.port = 0
        self._programs = install_postgres()
        self._process: subprocess.Popen[bytes] | None = None
        self._user = "nobody" if os.geteuid() == 0 else None
        self._script = SCRIPTS / "run_postgres.sh"
        if self._user is not None:
            shutil.chown(self.directory, self._user)
            # The checkout may be where only root may go.
            self._script = Path(shutil.copy(self._script, self.directory))

    def uri(self, database: str, *, user: str = USER, port: int | None = None) -> str:
        return f"postgresql://{user}:{self.password}@127.0.0.1:{port or self.port}/{database}"

    def create(self, database: str) -> str:
        """An empty database; its URI."""
        self.run(f'CREATE DATABASE "{database}"')
        return self.uri(database)

    def run(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.uri(database), autocommit=True) as connection:
            connection.execute(statement)

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}

    def start(self) -> None:
        for _ in range(5):
            port = self.port or free_port()
            self._run(port)
            wait_until(lambda port=port: self._answers(port) or not self.alive(), "the PostgreSQL server to answer", 60)
            if self.alive():
                self.port = port
                return
            if self.port:
                break
        raise RuntimeError(f"the PostgreSQL server did not start: {(self.directory / 'server.log').read_text()}")

    def _run(self, port: int) -> None:
        command = [self._script, f"127.0.0.1:{port}", self.directory, self.database]
        # After a crash a server syncs every file of every database: by the file system at once, not one by one.
        command += ["-c", "shared_buffers=16MB", "-c", "max_connections=120", "-c", "recovery_init_sync_method=syncfs"]
        command += [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        environment = {"PATH": os.environ["PATH"], "POSTGRES_BIN": str(self._programs), "POSTGRES_PASSWORD": self.password}
        with open(self.directory / "server.log", "ab") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as_user()
            )

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _answers(self, port: int) -> bool:
        try:
            psycopg.connect(self.uri("postgres", port=port), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def restart_immediately(self) -> None:
        """As `pg_ctl restart -m immediate`: every connection is cut, nothing is written out, the log is replayed."""
        self._end(signal.SIGQUIT)
        self.start()

    def kill(self) -> None:
        """SIGKILL of all its processes, as a power button would."""
        assert self._process is not None
        # Each leads a session of its own, so no group signal reaches them; while one is there, the next server does not start.
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self._process.wait(30)
        wait_until(lambda: not any(Path(f"/proc/{child}/exe").exists() for child in children), "the server's processes to end")
        self._process = None

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.directory)
