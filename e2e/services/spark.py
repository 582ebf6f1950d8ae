"""Spark with Iceberg for tests: one process that answers SQL, started once, over whatever catalogs it is told of."""

from __future__ import annotations

import base64
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent


class SparkError(Exception):
    """What Spark said of a statement, in its own words."""


def install_spark(script: str = "install_spark.sh") -> Path:
    """Its directory. Raises RuntimeError with what is missing."""
    done = subprocess.run([SCRIPTS / script], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Spark could not be installed:\n{done.stderr}")
    return Path(done.stdout.strip())


class Spark:
    """One session. `attach` names a catalog, `sql` runs a statement; both wait for the answer.

    With a `connect_port` it is a Spark Connect server too: clients get sessions of their own there.
    """

    def __init__(self, directory: Path, connect_port: int | None = None) -> None:
        self.directory, self.connect_port = directory, connect_port
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Spark:
        spark = install_spark()
        jars, options = sorted((spark / "jars").glob("*.jar")), []
        if self.connect_port is not None:
            jars += sorted((install_spark("install_spark_connect.sh") / "jars").glob("*.jar"))
            plugin = "spark.plugins=org.apache.spark.sql.connect.SparkConnectPlugin"
            options = [plugin, f"spark.connect.grpc.binding.port={self.connect_port}"]
        self.directory.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        environment = {
            "HOME": str(self.directory),
            "PATH": os.environ["PATH"],
            "SPARK_LOCAL_DIRS": str(self.directory / "scratch"),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "TZ": "UTC",
            **({"JAVA_HOME": os.environ["JAVA_HOME"]} if "JAVA_HOME" in os.environ else {}),
        }
        with open(self.directory / "spark.log", "ab") as log:
            self._process = subprocess.Popen(
                [spark / "venv" / "bin" / "python", SCRIPTS / "spark" / "driver.py", str(writing), ",".join(map(str, jars)), *options],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
            )
        os.close(writing)
        self._answers = os.fdopen(reading, "rb")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()  # It stops, and its JVM with it.
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._answers.close()

    def attach(self, uri: str, properties: Mapping[str, str] | None = None) -> str:
        """The name, of its own, under which statements find the tables of the REST catalog at `uri`.

        What Spark has seen of a table it keeps until `REFRESH TABLE`: without, it deletes from no table that others write to.
        """
        name = f"lake{next(self._numbers)}"
        prefix = f"spark.sql.catalog.{name}"
        settings = {"type": "rest", "uri": uri, **(properties or {})}
        self._ask({"settings": {prefix: "org.apache.iceberg.spark.SparkCatalog", **{f"{prefix}.{key}": settings[key] for key in settings}}})
        return name

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows, as Python's own values: exact decimals, moments in UTC. Raises SparkError."""
        return self.table(statement)[1]

    def table(self, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The names of the columns, and the rows."""
        answer = self._ask({"sql": statement})
        return answer["columns"], pickle.loads(base64.b64decode(answer["rows"]))  # Of our own child.

    def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        line = self._answers.readline()
        if not line:
            raise SparkError(f"Spark has ended:\n{(self.directory / 'spark.log').read_text()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SparkError(answer["error"])
        return answer
