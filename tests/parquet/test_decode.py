"""Parquet's bytes are read by the thread that asks, and by no other: at the interpreter's end none is left over."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dolake.parquet.decode import column_names, read_checked, read_columns

TABLE = pa.table({"id": [1, 2, None], "note": ["a", None, "ü"], "list": [[1], [], None]})


def written(**options: object) -> bytes:
    buffer = BytesIO()
    pq.write_table(TABLE, buffer, **options)
    return buffer.getvalue()


def test_whole_files_and_some_columns_are_read() -> None:
    data = written()
    assert read_columns(data).equals(TABLE)
    assert read_columns(data, ["note"]).equals(TABLE.select(["note"]))
    assert column_names(data) == ["id", "note", "list"]


def test_a_page_with_another_byte_does_not_verify() -> None:
    data = bytearray(written(write_page_checksum=True, compression="none", use_dictionary=False, write_statistics=False))
    assert sum(batch.num_rows for batch in read_checked(bytes(data))) == 3
    data[data.index("ü".encode())] ^= 1
    with pytest.raises((pa.ArrowException, OSError), match=r"(?i)crc|checksum"):
        list(read_checked(bytes(data)))


SCRIPT = """
import os, sys
import pyarrow.parquet  # Its import may start threads of its own.
from dolake.parquet.decode import column_names, read_checked, read_columns
data = sys.stdin.buffer.read()
before = set(os.listdir("/proc/self/task"))
for _ in range(20):
    read_columns(data), column_names(data), list(read_checked(data))
assert set(os.listdir("/proc/self/task")) == before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_is_left_behind() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], input=written(), check=True)
