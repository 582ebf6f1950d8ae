"""A real S3-compatible server for tests: started on a free port over a directory, killed, started again.

By hand: `python -m e2e.services.s3 DIRECTORY BUCKET…` starts one, prints the settings that point dolake at it, and runs
until Ctrl+C.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.harness.ports import free_port
from tests.harness.waiting import wait_until

SCRIPTS = Path(__file__).parent


def install_s3() -> Path:
    """The server's binary, built if need be. Raises RuntimeError with what is missing."""
    done = subprocess.run([SCRIPTS / "install_s3.sh"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the S3 server could not be built:\n{done.stderr}")
    return Path(done.stdout.strip())


class S3Server:
    """One server over `directory`. What is put stays there across `kill` and `start`; the port and the keys stay too."""

    def __init__(self, directory: Path, buckets: Sequence[str] = ("lake",)) -> None:
        self.directory, self.buckets = directory, tuple(buckets)
        self.access_key, self.secret_key = "AK" + secrets.token_hex(8), secrets.token_hex(20)
        self.region = "us-east-1"
        self._binary = install_s3()
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def settings(self, *, bucket: str | None = None, prefix: str = "warehouse") -> dict[str, str]:
        """The environment that points a daemon here."""
        return {
            "DOLAKE_WAREHOUSE_URI": f"s3://{bucket or self.buckets[0]}/{prefix}",
            "DOLAKE_S3_ENDPOINT": self.endpoint,
            "DOLAKE_S3_REGION": self.region,
            "DOLAKE_S3_ACCESS_KEY": self.access_key,
            "DOLAKE_S3_SECRET_KEY": self.secret_key,
        }

    def add_account(self, access_key: str, secret_key: str) -> None:
        """Keys that are good from now on, for everything."""
        self._administer("create-user", "--access", access_key, "--secret", secret_key, "--role", "admin")

    def remove_account(self, access_key: str) -> None:
        """Keys that are good no more."""
        self._administer("delete-user", "--access", access_key)

    def _administer(self, *command: str) -> None:
        keys = ["--access", self.access_key, "--secret", self.secret_key, "--endpoint-url", self.endpoint]
        subprocess.run([self._binary, "admin", *keys, *command], check=True, capture_output=True, timeout=60)

    def start(self) -> None:
        for _ in range(5):
            port = self._port or free_port()
            self._run(port)
            wait_until(lambda port=port: self._healthy(port) or not self.alive(), "the S3 server to answer", 30)
            if self.alive():
                self._port = port
                return
            if self._port:
                break
        raise RuntimeError(f"the S3 server did not start: {(self.directory / 'server.log').read_text()}")

    def _run(self, port: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.directory),
            "VERSITYGW": str(self._binary),
            "ROOT_ACCESS_KEY": self.access_key,
            "ROOT_SECRET_KEY": self.secret_key,
        }
        command = [SCRIPTS / "run_s3.sh", f"127.0.0.1:{port}", self.directory, *self.buckets]
        with open(self.directory / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _healthy(self, port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, as a power button would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print("usage: python -m e2e.services.s3 DIRECTORY [BUCKET...]", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with S3Server(Path(arguments[0]).absolute(), arguments[1:] or ("lake",)) as server:
        for name, value in server.settings().items():
            print(f"export {name}={value}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
