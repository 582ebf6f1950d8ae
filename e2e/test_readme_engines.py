"""The README's blocks for engines, run as they stand there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import duckdb

from e2e.services.spark import install_spark
from tests.harness.daemon import Daemon
from tests.test_readme import blocks

SECTION = "Query it from DuckDB, Spark, Trino, PyIceberg"


def run(python: Path, text: str, folder: Path, **more: str) -> list[str]:
    """The words printed by a program in `folder`, whose home directory is `folder` too."""
    environment = {**os.environ, "HOME": str(folder), **more}
    done = subprocess.run([python, "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout.split()


def bring_extensions(home: Path) -> None:
    """Lays DuckDB's extensions where it keeps those that it has fetched."""
    (platform,) = duckdb.sql("PRAGMA platform").fetchone() or ("",)
    fetched = home / ".duckdb" / "extensions" / f"v{duckdb.__version__}" / platform
    fetched.mkdir(parents=True)
    for name in ("avro", "httpfs", "iceberg"):
        (file,) = Path(sysconfig.get_paths()["purelib"], f"duckdb_extension_{name}").glob(f"extensions/*/{name}.duckdb_extension")
        shutil.copy(file, fetched)


def test_every_engine_s_block_counts_the_same_rows(tmp_path: Path) -> None:
    with Daemon(tmp_path / "lake", mode=None) as daemon:
        daemon.start()
        (tmp_path / "rows.ndjson").write_text("".join(f'{{"id": {key}}}\n' for key in range(1000)))
        command = ("send", str(tmp_path / "rows.ndjson"), "--source", "s", "--format", "rows", "--table", "readings", "--key", "id")
        sent = daemon.run(*command, "--wait", "persisted")
        assert sent.returncode == 0, sent.stdout + sent.stderr
        found = blocks(SECTION)
        assert [language for language, _ in found] == ["python", "python", "python", "properties"]
        by_pyiceberg, by_duckdb, by_spark = (text for _, text in found[:3])
        bring_extensions(tmp_path)
        assert run(Path(sys.executable), by_pyiceberg, tmp_path) == ["1000"]
        assert run(Path(sys.executable), by_duckdb, tmp_path) == ["1000"]
        # Spark looks for the package in Maven's own store below the home directory first, where the installation has put it.
        spark = install_spark()
        (tmp_path / ".m2").symlink_to(Path.home() / ".m2")
        quiet = {
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(tmp_path / "scratch"),
            "JAVA_TOOL_OPTIONS": f"-Duser.home={tmp_path}",
        }
        assert run(spark / "venv" / "bin" / "python", by_spark, tmp_path, **quiet)[-1] == "1000"
