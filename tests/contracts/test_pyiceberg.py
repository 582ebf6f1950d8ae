"""What PyIceberg does to a table that it writes, and does not do. Its inner parts are in `test_pyiceberg_parts.py`."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import PyArrowFileIO, _dataframe_to_data_files
from pyiceberg.manifest import ManifestContent
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Summary, update_snapshot_summaries
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import LongType, NestedField
from requests.adapters import HTTPAdapter

from tests.contracts.child import run_without_syncs
from tests.contracts.notebook import noting_server
from tests.iceberg import foreign
from tests.iceberg.lake import Lake
from tests.iceberg.mirror import Mirror

SCHEMA = pa.schema([("k", pa.int64())])


def rows(*keys: int) -> pa.Table:
    return pa.table({"k": pa.array(keys, pa.int64())})


def keys_in(table: Table) -> list[int]:
    return sorted(table.scan().to_arrow()["k"].to_pylist())


class ConflictsWithItself(SqlCatalog):
    """The request lands, its answer is lost, somebody on the way sends it again, and that one is answered 409."""

    is_armed = False
    load_count = 0

    def commit_table(self, *arguments: Any, **options: Any) -> Any:
        answer = super().commit_table(*arguments, **options)
        if self.is_armed:
            self.is_armed = False
            raise CommitFailedException("409, of our own request sent again")
        return answer

    def load_table(self, *arguments: Any, **options: Any) -> Table:
        self.load_count += 1
        return super().load_table(*arguments, **options)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[ConflictsWithItself]:
    warehouse = tmp_path / "warehouse"
    warehouse.mkdir()
    catalog = ConflictsWithItself("c", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{warehouse}")
    catalog.create_namespace("n")
    yield catalog
    catalog.close()


def test_its_retry_rebases_a_stale_writer_and_takes_its_offset_back(catalog: SqlCatalog) -> None:
    """Two writers append the same rows on the same base: both land, and properties are set blindly (design §6; `iceberg/commit.py`)."""
    catalog.create_table("n.t", schema=SCHEMA)
    mine, zombie = catalog.load_table("n.t"), catalog.load_table("n.t")
    for table, offset in ((mine, "2"), (zombie, "1")):
        with table.transaction() as transaction:
            transaction.append(rows(7))
            transaction.set_properties({"dolake.offset.x": offset})
    found = catalog.load_table("n.t")
    assert keys_in(found) == [7, 7], "it refuses a stale writer now"
    assert found.properties["dolake.offset.x"] == "1", "offsets do not go back any more"


def test_its_clean_up_deletes_the_list_of_a_snapshot_that_landed(catalog: ConflictsWithItself) -> None:
    """Without retries a 409 counts as "not landed", and the manifest list goes: the table cannot be read (`iceberg/commit.py`)."""
    table = catalog.create_table("n.t", schema=SCHEMA, properties={"commit.retry.num-retries": "0"})
    table.append(rows(1))
    catalog.is_armed = True
    with pytest.raises(CommitFailedException):
        table.append(rows(2))
    found = catalog.load_table("n.t")
    head = found.current_snapshot()
    assert head is not None
    assert len(found.metadata.snapshots) == 2, "the snapshot landed"
    assert not Path(head.manifest_list.removeprefix("file://")).exists(), "its manifest list is left alone now"
    with pytest.raises(FileNotFoundError):
        found.scan().to_arrow()


def test_its_commit_checks_another_state_than_the_one_it_was_planned_on(catalog: ConflictsWithItself) -> None:
    """`SqlCatalog.commit_table` loads the table once more and swaps that (`iceberg/catalog.py` keeps check and swap on one)."""
    table = catalog.create_table("n.t", schema=SCHEMA)
    catalog.load_count = 0
    stale = catalog.load_table("n.t")
    table.append(rows(1))
    catalog.load_count = 0
    catalog.commit_table(stale, (), ())
    assert catalog.load_count > 0
    assert len(catalog.load_table("n.t").metadata.snapshots) == 1


def test_a_commit_copies_the_metadata_again_and_again(catalog: SqlCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a commit costs more with every snapshot that is kept (decision 0001: metadata is a plain value here)."""
    table = catalog.create_table("n.t", schema=SCHEMA)
    table.append(rows(1))
    copies = 0
    original = type(table.metadata).model_copy

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal copies
        copies += 1
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(table.metadata), "model_copy", counted)
    table.append(rows(2))
    assert copies > 2, f"an append copies the metadata {copies} times"


def test_expired_snapshots_keep_their_files(catalog: SqlCatalog, tmp_path: Path) -> None:
    """`expire_snapshots` changes metadata only (design §7: maintenance must delete them itself)."""
    table = catalog.create_table("n.t", schema=SCHEMA)
    table.append(rows(0))
    for key in range(1, 3):
        table.overwrite(rows(key))
    before = {path for path in (tmp_path / "warehouse").rglob("*") if path.is_file()}
    table.maintenance.expire_snapshots().by_ids([one.snapshot_id for one in table.metadata.snapshots[:-1]]).commit()
    assert len(catalog.load_table("n.t").metadata.snapshots) == 1
    assert before <= set((tmp_path / "warehouse").rglob("*"))


@pytest.mark.parametrize("implementation", ["pyarrow.PyArrowFileIO", "fsspec.FsspecFileIO"])
def test_its_file_ios_never_sync(tmp_path: Path, implementation: str) -> None:
    """What it wrote may be gone after a power cut (`iceberg/file_io.py` puts through a store of ours, which syncs)."""
    module, name = implementation.split(".")
    setup = f"""
        import os, sys
        from pyiceberg.io.{module} import {name}
        stream = {name}({{}}).new_output("file://" + sys.argv[1]).create()
    """
    done = run_without_syncs(setup, "stream.write(b'x' * 100_000)\nstream.close()\nos._exit(0)", tmp_path / "one")
    assert done.returncode == 0, f"{name} asks for a sync now: {done.returncode} {done.stderr}"
    assert (tmp_path / "one").stat().st_size == 100_000
    control = run_without_syncs("import os, sys", "os.fdatasync(os.open(sys.argv[1], os.O_RDWR))", tmp_path / "one")
    assert control.returncode == -31, f"a sync is not noticed: {control.returncode} {control.stderr}"


def test_it_uploads_the_smallest_file_in_parts() -> None:
    """`PyArrowFileIO` on S3: three requests where one PUT would do (`iceberg/file_io.py` puts whole objects)."""
    started = b"<InitiateMultipartUploadResult><UploadId>7</UploadId></InitiateMultipartUploadResult>"
    with noting_server() as server:
        over = b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
        server.answers = [(200, started, len(started)), (200, b"", 0), (200, over, len(over))]
        access = {"s3.endpoint": server.endpoint, "s3.access-key-id": "k", "s3.secret-access-key": "s", "s3.region": "us-east-1"}
        with PyArrowFileIO(access).new_output("s3://bucket/tiny").create(overwrite=True) as stream:
            stream.write(b"x")
        asked = [(request[0], path) for request, path in zip(server.requests, server.paths, strict=True)]
    assert [method for method, _ in asked] == ["POST", "PUT", "POST"], asked
    assert "uploads" in asked[0][1]


def test_its_rest_client_waits_for_ever() -> None:
    """No request has a timeout (design §6: clients get timeouts of ours)."""
    seen: list[Any] = []

    class Settings(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"defaults": {}, "overrides": {}, "namespaces": []}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Watching(HTTPAdapter):
        def send(self, *arguments: Any, **options: Any) -> requests.Response:
            seen.append(options["timeout"])
            return super().send(*arguments, **options)

    with ThreadingHTTPServer(("127.0.0.1", 0), Settings) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            catalog = RestCatalog("rest", uri=f"http://127.0.0.1:{server.server_port}")
            catalog._session.mount("http://", Watching())
            catalog.list_namespaces()
            catalog.close()
        finally:
            server.shutdown()
            serving.join()
    assert seen == [None], "it has timeouts now"


def test_overwrite_and_upsert_make_several_snapshots(catalog: SqlCatalog) -> None:
    """A reader between them sees rows gone that are only replaced (design §4: one flush, one snapshot; ours is a row delta)."""
    schema = pa.schema([pa.field("k", pa.int64(), nullable=False), ("v", pa.int64())])
    table = catalog.create_table("n.t", schema=schema)
    table.append(pa.Table.from_pydict({"k": [1, 2], "v": [1, 1]}, schema=schema))
    counts = [len(table.metadata.snapshots)]
    table.upsert(pa.Table.from_pydict({"k": [2, 3], "v": [2, 2]}, schema=schema), join_cols=["k"])
    counts.append(len(table.metadata.snapshots))
    table.overwrite(pa.Table.from_pydict({"k": [3, 4], "v": [9, 9]}, schema=schema))
    counts.append(len(table.metadata.snapshots))
    assert counts[1] - counts[0] > 1, "upsert is one snapshot now"
    assert counts[2] - counts[1] > 1, "overwrite is one snapshot now"


def test_its_summaries_refuse_a_replacement() -> None:
    """A compaction is a REPLACE (`iceberg/summary.py` makes summaries itself)."""
    with pytest.raises(ValueError, match="not implemented"):
        update_snapshot_summaries(Summary(Operation.REPLACE))


def test_its_target_file_size_means_bytes_of_arrow(catalog: SqlCatalog) -> None:
    """And not of the file (`datafiles.py` measures what it encodes)."""
    target = 1 << 20
    table = catalog.create_table("n.t", schema=SCHEMA, properties={"write.target-file-size-bytes": str(target)})
    many = pa.table({"k": pa.array([7] * (4 * target // 8), pa.int64())})  # 4 MiB in Arrow, a few hundred bytes in Parquet
    files = list(_dataframe_to_data_files(table_metadata=table.metadata, df=many, io=table.io))
    assert len(files) == 4
    assert all(file.file_size_in_bytes < target / 10 for file in files)


@pytest.mark.parametrize("name", ["../../../evil", "a/../../../../evil"])
def test_it_writes_outside_the_warehouse_if_a_name_says_so(catalog: SqlCatalog, tmp_path: Path, name: str) -> None:
    """Names are not checked (`model.TableName` is the allow-list, before any use)."""
    table = catalog.create_table(("n", name), schema=SCHEMA)
    table.append(rows(1))
    written = {path.resolve() for path in Path(table.location().removeprefix("file://")).rglob("*.parquet")}
    assert written, table.location()
    assert not any(path.is_relative_to((tmp_path / "warehouse").resolve()) for path in written)


def test_delete_manifests_are_never_merged_by_it(lake: Lake) -> None:
    """However many there are (`iceberg/manifests.py` merges them by content and spec)."""
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b", 3: "c", 4: "d", 5: "e"})
    for key in range(1, 5):
        mirror.change({}, [key])
    deletes = [one for one in foreign.manifests_of(lake) if one.content == ManifestContent.DELETES]
    assert len(deletes) > 1
    table = lake.plain_table()
    with table.transaction() as transaction:
        transaction.set_properties({"commit.manifest-merge.enabled": "true", "commit.manifest.min-count-to-merge": "2"})
    foreign.append(lake, {9: "z"})
    manifests = foreign.manifests_of(lake)
    assert len([one for one in manifests if one.content == ManifestContent.DELETES]) == len(deletes)
    assert len([one for one in manifests if one.content == ManifestContent.DATA]) == 1, "not even data manifests were merged: no proof"


def test_it_does_not_read_a_table_with_equality_deletes(lake: Lake) -> None:
    """It raises (so dolake writes position deletes only, and refuses to mirror into a table that has others)."""
    foreign.append(lake, {1: "a", 2: "b"})
    foreign.equality_delete(lake, [1])
    with pytest.raises(ValueError, match="equality"):
        lake.plain_table().scan().to_arrow()


def test_files_go_to_the_default_spec(catalog: SqlCatalog) -> None:
    """Whatever spec the writer had planned for (`Delta.spec_id` says which a flush was planned with)."""
    table = catalog.create_table("n.t", schema=SCHEMA)
    stale = catalog.load_table("n.t")
    with table.update_spec() as update:
        update.add_field("k", IdentityTransform(), "k")
    stale.refresh()
    stale.append(rows(1))
    head = stale.current_snapshot()
    assert head is not None
    assert {manifest.partition_spec_id for manifest in head.manifests(stale.io)} == {table.spec().spec_id}


def test_sort_orders_are_stored_and_not_applied(catalog: SqlCatalog) -> None:
    """Rows stand in the file as they were given (a rewrite that sorts must sort itself)."""
    schema = Schema(NestedField(1, "k", LongType(), required=False))
    table = catalog.create_table("n.t", schema=schema, sort_order=SortOrder(SortField(1, IdentityTransform())))
    table.append(rows(3, 1, 2))
    assert table.scan().to_arrow()["k"].to_pylist() == [3, 1, 2]


def test_metadata_is_not_shared_between_loads(catalog: SqlCatalog) -> None:
    """`SqlTableCatalog` may cache by location because nobody else changes a loaded table's metadata."""
    catalog.create_table("n.t", schema=SCHEMA)
    one, other = catalog.load_table("n.t"), catalog.load_table("n.t")
    before = copy.deepcopy(other.metadata)
    one.append(rows(1))
    assert other.metadata == before
