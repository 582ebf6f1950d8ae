"""Files that snapshots name: they exist with the size and rows they should have (I10), and their bytes are whole (I15)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from dolake.errors import ObjectMissing
from dolake.iceberg.contents import Contents, LiveFile
from dolake.iceberg.objects import has_its_digest
from dolake.parquet.decode import read_checked
from dolake.parquet.deletes import decode_deletes
from dolake.storage.store import ObjectStore
from dolake.verify.breach import Breach


def verify_sizes(store: ObjectStore, subject: str, contents: Iterable[Contents]) -> Iterator[Breach]:
    """Every file that any retained snapshot names, asked for once."""
    sizes: dict[str, int] = {}
    for content in contents:
        sizes.update(content.metadata)
        sizes.update({file.location: file.size_bytes for file in content.files})
    for location, wanted in sorted(sizes.items()):
        try:
            found = store.size(location)
        except ObjectMissing:
            yield Breach("I10", subject, f"{location} is named by a snapshot and does not exist")
            continue
        if wanted and found != wanted:
            yield Breach("I10", subject, f"{location} should have {wanted} bytes and has {found}")


def verify_file(file: LiveFile, data: bytes, subject: str) -> Iterator[Breach]:
    """One live file's whole content against its name's digest, its page checksums and its row count."""
    if not has_its_digest(file.location, data):
        yield Breach("I15", subject, f"{file.location}: its bytes are not those that were written (digest differs)")
    try:
        rows = sum(batch.num_rows for batch in read_checked(data))
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text in its footer that is none
        yield Breach("I15", subject, f"{file.location}: a page does not verify: {error}")
        return
    if file.kind == "position deletes":
        try:
            decode_deletes(data)
        except pa.ArrowException as error:
            yield Breach("I10", subject, f"{file.location} cannot be read as the position deletes that it should be: {error}")
    if rows != file.row_count:
        yield Breach("I10", subject, f"{file.location} should have {file.row_count} rows and has {rows}")
