"""`dolake demo` as a newcomer runs it, without a terminal."""

from __future__ import annotations

import gzip
import subprocess
from importlib.resources import files
from pathlib import Path

from dolake.cdc.formats import Event
from dolake.cdc.formats.wal2json import Wal2json
from dolake.cli.demo import SAMPLE, SAMPLE_EVENTS
from tests.harness.daemon import clean_environment, dolake_command


def test_the_demo_shows_everything_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = clean_environment({"TMPDIR": str(tmp_path), "DOLAKE_PORT": "not a port"})  # whatever is set here, the demo's daemon runs
    done = subprocess.run([*dolake_command(), "demo"], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9" in done.stdout
    assert f"{SAMPLE_EVENTS:,} events durable and committed" in done.stdout
    assert f"0 events sent, {SAMPLE_EVENTS:,} were there already" in done.stdout
    assert "447208.6248" in done.stdout
    assert "🚀" in done.stdout
    assert "What to try next" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_sample_has_as_many_events_as_the_demo_says() -> None:
    lines = gzip.decompress(files("dolake").joinpath("demo", SAMPLE).read_bytes()).splitlines()
    assert sum(isinstance(item, Event) for item in Wal2json().items(lines)) == SAMPLE_EVENTS
