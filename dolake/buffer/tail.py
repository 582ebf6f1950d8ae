"""Reading a log while another process writes, seals, recovers and trims it. Nothing at or above the synced end is ever read.

However valid they look, bytes above the synced end may be gone after a power cut, and their offsets given to others (I5).
Below it they never change; only the names of the files do. So a file that is gone, or ends too soon, is looked for again;
what still does not verify then is corruption.

While a log is quiet nothing of it is held open: a disk can be unmounted, mended, or exchanged for a copy of it, and what is
mounted there next is what is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from dolake.buffer.codec import Unpacker
from dolake.buffer.record import FIXED, FOOTER_KIND, HEADER_KIND, BadFrame, decode_record, parse_frame, record_size, salt_crc
from dolake.buffer.recovery import apply_frame
from dolake.buffer.segment import (
    OPEN,
    SEALED,
    TRAILER_SIZE,
    Footer,
    SegmentName,
    check_frame,
    decode_footer,
    decode_log_id,
    footer_size,
    read_whole,
    scan_segment,
    segment_names,
)
from dolake.buffer.synced import NAME as SYNCED_END
from dolake.buffer.synced import decode_end
from dolake.errors import LogCorrupt, LogFailed, LogRefused
from dolake.model import Record
from dolake.storage.disk import Disk, File, SharedCounter

_ATTEMPT_COUNT = 8
_QUIET_LOOKS = 20  # After so many looks that found nothing new the files are let go, until there is something.
_CHUNK_BYTES_MIN = 256 << 10


@dataclass
class _Cursor:
    """A place in a segment: the next frame begins at `position`, holds `offset`, is chained to `crc`.

    `file` is None while it is let go. `packed` is the share of its size that the last record takes in the file: how much there
    is to read for what is wanted.
    """

    name: SegmentName
    path: str
    file: File | None
    log_id: str
    salt: int
    position: int
    offset: int
    crc: int
    packed: float = 1.0


class LogReader:
    """The writer half's view of one log. Calls block.

    All raise LogRefused while there is no log in the directory, LogFailed while its disk cannot be read.
    """

    def __init__(self, disk: Disk, directory: str) -> None:
        self.directory = directory
        self.log_id = ""
        self._disk = disk
        self._counter: SharedCounter | None = None
        self._cursor: _Cursor | None = None
        self._unpacker = Unpacker()
        self._last_end: int | None = None
        self._quiet_looks = 0
        with self._reading():
            self.log_id = self._read_log_id()

    def first_offset(self) -> int:
        """The first offset that is still there."""
        with self._reading():
            return self._names()[0].first_offset

    def whole_from(self) -> int:
        """The offset from which on nothing is missing: below the bound of a trim that was cut short any segment may be gone."""
        with self._reading():
            names = [name for name in self._names() if not name.quarantined]
            first = names[-1].first_offset
            for name in reversed(names[:-1]):
                footer = self._footer(name) if name.state == SEALED else None
                if footer is not None and footer.end < first:
                    break
                first = name.first_offset if footer is not None else first
        return first

    def synced_end(self) -> int:
        """The first offset that must not be read. Until the ingest half has opened the log it may be below the truth.

        While the disk cannot be asked it is what it was when last seen.
        """
        try:
            with self._reading():
                return self._look_end()
        except (LogFailed, LogRefused):
            if self._last_end is None:
                raise
            return self._last_end

    def _look_end(self) -> int:
        self._last_end = self._published_end()
        return self._last_end

    def _published_end(self) -> int:
        if self._counter is None:
            try:
                self._counter = self._disk.counter(f"{self.directory}/{SYNCED_END}", writable=False)
            except (FileNotFoundError, ValueError):  # ValueError: made, and not yet given its size.
                return self._sealed_end()
        end = decode_end(self.log_id, self._counter.get())
        return self._sealed_end() if end is None else end

    def read(self, start: int, size_bytes_max: int) -> list[Record]:
        """Records from `start` on, at most `size_bytes_max` of them (unpacked) but at least one; empty if none is synced yet.

        Raises LogCorrupt where the log cannot be read on, or `start` was trimmed; LogRefused for another or a newer log.
        """
        records: list[Record] = []
        room = size_bytes_max
        segment_ended = True
        with self._reading():
            end = self._look_end()
            self._note_look(start < end)
            while start < end and segment_ended and (room > 0 or not records):
                more, segment_ended = self._read_segment(start, end, room)
                records += more
                start += len(more)
                room -= sum(record.size_bytes for record in more)
        return records

    def after_trim(self, start: int) -> int:
        """Where to read on when `start` is gone: the next segment's first offset, if a trim has said that nobody needs what is below.

        `start` itself if none has: then it is lost. A trim may have been interrupted, so that older segments are still there.
        """
        with self._reading():
            return self._after_trim(start)

    def _after_trim(self, start: int) -> int:
        for _ in range(_ATTEMPT_COUNT):
            names = [name for name in self._names() if not name.quarantined]
            following = min((name.first_offset for name in names if name.first_offset > start), default=start)
            if following == start:
                break
            newest = f"{self.directory}/{names[-1].file}"
            try:
                segment = scan_segment(read_whole(self._disk, newest), newest, names[-1], apply_frame(newest))
            except FileNotFoundError:  # Sealed since it was listed.
                continue
            return following if following <= segment.state.bound else start
        return start

    def close(self) -> None:
        self._drop_cursor()
        self._let_go()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Around everything that reads the disk: what it cannot be asked stays unknown, and nothing of it is held."""
        try:
            yield
        except OSError as error:
            self._let_go()
            raise LogFailed(f"{self.directory}: {error.strerror}: the log cannot be read") from error

    def _note_look(self, found: bool) -> None:
        self._quiet_looks = 0 if found else self._quiet_looks + 1
        if self._quiet_looks >= _QUIET_LOOKS:
            self._let_go()

    def _let_go(self) -> None:
        """Closes the files, and keeps the place in them."""
        if self._counter is not None:
            self._counter.close()
            self._counter = None
        if self._cursor is not None and self._cursor.file is not None:
            self._cursor.file.close()
            self._cursor.file = None

    def _read_segment(self, start: int, end: int, room: int) -> tuple[list[Record], bool]:
        """Records of the segment that holds `start`, and whether its footer was reached."""
        for _ in range(_ATTEMPT_COUNT):
            try:
                cursor = self._cursor_at(start)
                records, segment_ended = self._take(cursor, start, end, room)
            except (FileNotFoundError, BadFrame):  # Renamed, copied or trimmed since it was listed: look again.
                self._drop_cursor()
                continue
            if segment_ended:
                self._drop_cursor()
            if records:
                return records, segment_ended
        raise self._why_not(start)

    def _take(self, cursor: _Cursor, start: int, end: int, room: int) -> tuple[list[Record], bool]:
        """Reads on from the cursor. Raises BadFrame if not even one record can be had."""
        records: list[Record] = []
        assert cursor.file is not None, "a cursor that was let go"
        while cursor.offset < end and (room > 0 or not records):
            data = cursor.file.read_at(cursor.position, max(int(room * cursor.packed), _CHUNK_BYTES_MIN))
            position = 0
            while cursor.offset < end:
                try:
                    frame = parse_frame(data, position)
                    check_frame(frame, previous=cursor.crc, salt=cursor.salt, offset=cursor.offset)
                except BadFrame as error:
                    if error.short and position:
                        break  # Only the end of what was read: read on from here.
                    wanted = min(error.short, cursor.file.size() - cursor.position)
                    if wanted > len(data):
                        data = cursor.file.read_at(cursor.position, wanted)
                        continue
                    if records:
                        return records, False
                    raise
                if frame.is_record and frame.offset >= start:
                    if records and record_size(frame) > room:
                        return records, False
                    record = decode_record(frame, cursor.log_id, cursor.path, self._unpacker)
                    records.append(record)
                    room -= record.size_bytes
                    cursor.packed = record.stored_bytes / record.size_bytes
                cursor.position += frame.length
                cursor.crc = frame.crc
                position = frame.end
                if frame.kind == FOOTER_KIND:
                    return records, True
                cursor.offset += frame.is_record
        return records, False

    def _cursor_at(self, start: int) -> _Cursor:
        """Where to read `start`: the last place, or the beginning of the segment that holds it. May raise FileNotFoundError."""
        cursor = self._cursor
        if cursor is not None and cursor.offset == start:
            there = cursor.name.state != OPEN or self._disk.exists(cursor.path)
            if there and cursor.file is not None:
                return cursor
            found = self._open(cursor.name if there else cursor.name._replace(state=SEALED))
            self._drop_cursor()
            self._cursor = found
            if found.salt == cursor.salt:  # The same bytes, perhaps under the name of a sealed one: go on at the same place.
                found.position, found.offset, found.crc, found.packed = cursor.position, cursor.offset, cursor.crc, cursor.packed
                return found
        self._drop_cursor()
        self._cursor = self._open(self._name_for(start))
        return self._cursor

    def _name_for(self, start: int) -> SegmentName:
        names = self._names()
        if start < names[0].first_offset:
            reason = f"offset {start} is gone: the log begins with {names[0].first_offset}"
            raise LogCorrupt(path=self.directory, position=0, end=0, reason=reason)
        first_offset = max(name.first_offset for name in names if name.first_offset <= start)
        bad = [name for name in names if name.quarantined and name.first_offset < first_offset]
        if bad:
            reason = f"quarantined, and offset {start} lies behind it"
            raise LogCorrupt(path=f"{self.directory}/{bad[0].file}", position=0, end=0, reason=reason)
        same = [name for name in names if name.first_offset == first_offset]
        for name in same[:-1]:
            # A sealed copy and what it was copied from; or an empty sealed one and the segment that goes on from it.
            footer = self._footer(name) if name.state == SEALED and not name.quarantined else None
            if footer is not None and start < footer.end:
                return name
        return same[-1]

    def _open(self, name: SegmentName) -> _Cursor:
        path = f"{self.directory}/{name.file}"
        with ExitStack() as undo:
            file = self._disk.open(path)
            undo.callback(file.close)
            data = file.read_at(0, _CHUNK_BYTES_MIN)
            if len(data) == _CHUNK_BYTES_MIN:
                length = FIXED.unpack_from(data)[3]
                data = data if length <= len(data) else file.read_at(0, min(length, file.size()))
            frame = parse_frame(data, 0)
            if frame.kind != HEADER_KIND or frame.previous != salt_crc(frame.salt) or frame.offset != name.first_offset:
                raise BadFrame(0, "the segment does not begin with its header")
            log_id = decode_log_id(frame.payload, path)
            if self.log_id not in ("", log_id):
                raise LogRefused(f"{path}: belongs to log {log_id}; {self.log_id} was here before")
            undo.pop_all()
        return _Cursor(name, path, file, log_id, frame.salt, frame.length, frame.offset, frame.crc)

    def _footer(self, name: SegmentName) -> Footer | None:
        """The footer of a sealed segment, without reading the rest of it."""
        file = self._disk.open(f"{self.directory}/{name.file}")
        try:
            size = file.size()
            length = footer_size(file.read_at(max(0, size - TRAILER_SIZE), TRAILER_SIZE)) or 0
            frame = parse_frame(file.read_at(max(0, size - length), length), 0)
        except BadFrame:
            return None
        finally:
            file.close()
        return decode_footer(frame.payload) if frame.kind == FOOTER_KIND else None

    def _names(self) -> list[SegmentName]:
        """Raises LogRefused if there are none."""
        try:
            names = segment_names(self._disk.list(self.directory))
        except FileNotFoundError:
            names = []
        if not names:
            raise LogRefused(f"{self.directory}: there is no log here")
        return names

    def _read_log_id(self) -> str:
        for _ in range(_ATTEMPT_COUNT):
            try:
                self._cursor = self._open(self._names()[-1])
            except (FileNotFoundError, BadFrame):
                continue
            log_id = self._cursor.log_id
            self._drop_cursor()
            return log_id
        raise LogRefused(f"{self.directory}: the newest segment has no good header; see `dolake log verify`")

    def _sealed_end(self) -> int:
        """What is certain without the published number: sealed segments were synced before they got their name."""
        names = self._names()
        end = names[0].first_offset
        for name in names:
            if name.quarantined:
                break
            if name.state == SEALED:
                try:
                    footer = self._footer(name)
                except FileNotFoundError:
                    continue
                end = max(end, footer.end if footer is not None else end)
        return end

    def _why_not(self, start: int) -> LogCorrupt:
        """What stands where a synced record belongs."""
        name = self._name_for(start)
        path = f"{self.directory}/{name.file}"
        try:
            data = read_whole(self._disk, path)
            segment = scan_segment(data, path, name)
        except LogCorrupt as error:
            return error
        reason = f"offset {start} was synced and is not here"
        return LogCorrupt(path=path, position=segment.valid_end, end=len(data), reason=reason)

    def _drop_cursor(self) -> None:
        if self._cursor is not None and self._cursor.file is not None:
            self._cursor.file.close()
        self._cursor = None
