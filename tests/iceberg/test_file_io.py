"""PyIceberg's FileIO over an object store: whole objects, put when closed and only then."""

from __future__ import annotations

from contextlib import suppress

import pytest

from dolake.errors import ObjectMissing
from dolake.iceberg.file_io import StoreFileIO
from tests.storage.power import PowerCutStore

LOCATION = "file:///warehouse/t/metadata/a.avro"


def test_what_was_written_is_put_when_closed() -> None:
    store = PowerCutStore()
    output = StoreFileIO(store).new_output(LOCATION)
    with output.create() as stream:
        stream.write(b"ab")
        stream.write(b"c")
        assert store.objects == {}
    stream.close()
    assert store.objects == {LOCATION: b"abc"}
    assert len(output) == 3
    assert output.exists()
    with output.to_input_file().open() as stream_in:
        assert stream_in.read() == b"abc"


def test_nothing_is_put_when_writing_failed_or_was_abandoned() -> None:
    store = PowerCutStore()
    with suppress(ZeroDivisionError), StoreFileIO(store).new_output(LOCATION).create() as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    abandoned = StoreFileIO(store).new_output(LOCATION).create()
    abandoned.write(b"half")
    del abandoned
    assert store.objects == {}


def test_objects_are_looked_at_and_deleted_by_location_or_file() -> None:
    store = PowerCutStore()
    io = StoreFileIO(store)
    file = io.new_input(LOCATION)
    assert not file.exists()
    with pytest.raises(ObjectMissing):
        file.open()
    for target in (LOCATION, file):
        store.put(LOCATION, b"abc")
        assert (len(file), file.exists()) == (3, True)
        io.delete(target)
        assert not file.exists()
