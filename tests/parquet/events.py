"""Events for the tests of rows: made of raw JSON text, so that every way of writing a value can be tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pyarrow as pa
from pyiceberg.schema import Schema

from dolake.model import DeclaredColumn, DeclaredSchema
from dolake.parquet.columns import Columns
from dolake.parquet.exact import ExactDecoder, arrays_of
from dolake.parquet.layout import EventChunk, Layout
from dolake.parquet.letters import Letter
from dolake.parquet.schema import evolve_declared

TABLE = "default.orders"


def _listed(text: str) -> list[str]:
    return [value for line in text.strip().splitlines() for value in line.strip().split(" | ")]


# JSON text that each type has to be read from, and text that some type must not be read from.
SANE = {
    kind: _listed(text)
    for kind, text in {
        "boolean": "true | false",
        "int": "0 | -0 | 2147483647 | -2147483648",
        "long": "9007199254740993 | 9223372036854775807 | -9223372036854775808",
        "float": "1.5 | 0.1 | 16777217 | 1e-46 | 1.00000017881393432617187499 | 3.4028235e38 | -0.0",
        "double": "1 | 1e3 | 0.1 | 1E+2 | 9007199254740993 | 4.9e-324 | 1e-999 | -0.0 | 1.7976931348623157e308",
        "decimal(12,2)": """1 | 1.5 | "1.50" | 986.29 | "-0.01" | 1e2 | "1.230" | "+1" | ".5" | "1." | 9999999999.99 | -0""",
        "decimal(38,10)": """1234567890123456789012345678.0123456789 | "-1.0000000001" | 9999999999999999999999999999""",
        "decimal(38,38)": """"0.00000000000000000000000000000000000001" | 0""",
        "date": """"2026-11-20" | "0001-01-01" | "9999-12-31" | "2024-02-29\"""",
        "time": """"15:30:18" | "15:30:18.125015" | "00:00" | "23:59:59.9" | "07\"""",
        "timestamp": r"""
            "2026-11-20 15:30:18.125015" | "2026-11-20T15:30:18" | "0001-01-01 00:00:00" | "1969-12-31 23:59:59.999999"
            "2026-11-20"
        """,
        "timestamptz": r"""
            "2026-11-20 15:30:18.125015+00" | "2026-11-20T15:30:18Z" | "2026-11-20T15:30:18.1-03:30" | "2026-11-20 15:30+0530"
        """,
        "string": r"""
            "" | "é🚀\u00e9\ud83d\ude80" | "a\u0000b" | "\"\\\n" | "שלום" | null
        """,
        "uuid": """"0b5e1f8e-8f7c-4c1e-9a51-0123456789aB" | "00000000-0000-0000-0000-000000000000\"""",
        "binary": """"" | "AA==" | "AAE=" | "AAEC" | "+/8=\"""",
        "fixed(2)": """"AAE=" | "//8=\"""",
        "json": r"""
            "{\"k\": 1, \"emoji\": \"🚀\"}" | "[]" | "1"
        """,
        "list<string>": """[] | ["a",null,""]""",
        "list<list<int>>": "[[1],null,[]]",
        "list<timestamptz>": """["2026-11-20 15:30:18+02",null]""",
        "list<uuid>": """["0b5e1f8e-8f7c-4c1e-9a51-0123456789ab"]""",
        "struct<a: long, b: list<decimal(4,1)>>": """{} | {"b":[1.5,"2"]} | {"a":1,"b":null}""",
    }.items()
}
WILD = [
    *_listed(r"""
        null | true | 1 | -1 | 1.0 | 1.5 | 1e3 | 1e400 | -1e400 | 1e-400 | 2147483648 | 9223372036854775808 | -9223372036854775809
        123456789012345678901234567890123456789012345678901234567890 | 12345678901 | 1e11 | 1e30 | 4e29 | 1e37 | 1e38
        99999999999999999999999999999999999999 | 0.001 | 1e-77 | 1e-2147483647 | 0e-1000000000 | 1e2147483648
        "1e-1000000000" | "1e-77" | "0E-99" | "1\u0065-1000000000" | "\u0031e-77" | "1e\u002d77" | "1e-7\u0037" | "1e-77\u0020"
        "1_0" | " 1" | "1 " | "１" | "." | "e2" | "1e" | "1e+" | "--1" | "0x1" | "NaN" | "Infinity" | "-Infinity" | "inf" | "nan" | "1,5"
        "00001" | "1e00000000000000000000000001" | "2026-02-29" | "2026-1-1" | "0000-01-01" | "10000-01-01" | "2026-11-20Z"
        "2026-11-20 24:00:00" | "2026-11-20 23:59:60" | "2026-11-20t10:00:00" | "2026-11-20 10:00:00.1234567" | "2026-11-20 10:00:00."
        "2026-11-20 10:00:00+24:00" | "2026-11-20 10:00:00+00:60" | "2026-11-20 10:00:00 UTC" | "0001-01-01 00:00:00+01"
        "9999-12-31 23:59:59-01" | "9999-12-31 23:59:59.999999-00" | "infinity" | "-infinity" | "2026-11-20 10:00:00 BC"
        "24:00:00" | "15:30:60" | "15:30:18Z" | "153018" | "15:30:18\n" | "2026-11-20\n" | "AA==\n" | "A" | "AA=" | "AA==AA==" | "A==="
        "=AAA" | "AA-_" | "AB==" | "0b5e1f8e8f7c4c1e9a510123456789ab" | "{0b5e1f8e-8f7c-4c1e-9a51-0123456789ab}"
        "0b5e1f8e-8f7c-4c1e-9a51-0123456789ag" | "0b5e1f8e-8f7c-4c1e-9a51-0123456789ab\n" | "\ud83d" | "\ude00x" | "\uD83D\uD83D" | ""
        [] | {} | [[]] | [{}] | [["k",1]] | [["k",1],["k",2]] | [[null,1]] | [["k"]] | [1,"a"] | {"a":1} | {"a":1,"a":1} | {"a":1,"z":2}
        {"b":[1e-99]} | ["a","a"] | [null] | {"a": {"x" : [1, 2.50]} }
    """),
    "0." + "0" * 90,
    "0." + "0" * 76 + "1",
    "1.00000000000000000000e-25",
    "1." + "0" * 30 + "e-20",
    "0." + "3" * 500,
    '"1\\u002e' + "0" * 80 + '"',
    "[" * 50 + "]" * 50,
    '"\x7f"',
]


@dataclass(frozen=True)
class DeclaredLayout(Layout):
    """A layout together with the schema it was made from."""

    iceberg: Schema


def schema_of(**columns: str) -> Schema:
    return evolve_declared([DeclaredSchema(TABLE, (), tuple(DeclaredColumn(name, kind) for name, kind in columns.items()))], None).schema


def layout_of(key: Sequence[str] = (), **columns: str) -> DeclaredLayout:
    schema = schema_of(**columns)
    layout = Layout.of(TABLE, schema, key)
    return DeclaredLayout(**{field.name: getattr(layout, field.name) for field in fields(Layout)}, iceberg=schema)


def read_exactly(layout: DeclaredLayout, chunk: EventChunk) -> tuple[pa.Table, list[Letter]]:
    """The chunk's rows and letters, read event by event; the rows in the columns that the table has by then."""
    columns = Columns(layout.iceberg, columns_max=1000)
    readings = ExactDecoder(columns, layout.primary_key).read(chunk, {})
    return arrays_of(readings.rows, Layout.of(TABLE, columns.schema(), layout.primary_key).event_schema), readings.letters


def row_text(values: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in values.items()) + "}"


def event(
    after: Mapping[str, str] | None = None,
    *,
    before: Mapping[str, str] | None = None,
    operation: str = "INSERT",
    sequence: str = "7",
    timestamp: str = "1767225600990",
    **more: str,
) -> bytes:
    """An event's bytes; every value is JSON text."""
    members = {"sequence": sequence, "timestamp": timestamp, "operation": json.dumps(operation), "table": '"orders"'}
    if before is not None:
        members["before"] = row_text(before)
    if after is not None:
        members["after"] = row_text(after)
    return row_text({**members, **more}).encode()


def chunk_of(*events: bytes, offset: int = 3, source: str = "db", epoch: str = "", log: str = "log-a") -> EventChunk:
    return EventChunk(log, offset, source, epoch, list(events), range(len(events)))
