# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one WAL record a switchover hangs on: the checkpoint a primary writes last when it shuts down.

A standby that has replayed to the *end* of that record has every commit the primary ever acknowledged; pg_control
gives only its start. Every record is checked as the server checks it: page headers, lengths, xl_prev, CRC-32C.

The LSN of a record's end is what ``pg_last_wal_replay_lsn()`` says once the record is replayed, and what a timeline
history file names as switch point: the aligned end, and where a page ends there the page boundary itself, not the first
byte behind the next page header.

Sources: src/include/access/xlogrecord.h, xlog_internal.h; src/backend/access/transam/xlogreader.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from .._core.errors import DbopsError
from .control import SHUT_DOWN, ControlFile, crc32c
from .lsn import format_lsn, wal_segment_name

# XLogPageHeaderData: magic, info, timeline, address of the page, bytes left of a record begun on an earlier page.
_PAGE_HEADER = struct.Struct("<HHIQI4x")
# XLogLongPageHeaderData adds system identifier, segment size, block size; on the first page of every segment.
_LONG_HEADER = struct.Struct("<QII")
_CONTINUES_RECORD = 0x0001
_IS_LONG = 0x0002
# XLOG_PAGE_MAGIC of 13, 14, 15, 16, 17, 18. Another one may mean another layout.
_MAGICS = (0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118)

# XLogRecord: total length, xid, start of the previous record, info, resource manager, CRC (of all bytes behind it, then
# of those before it).
_RECORD_HEADER = struct.Struct("<IIQBB2xI")
_CRC_OFFSET = 20
_ALIGNMENT = 8
_RM_XLOG = 0
_INFO_MASK = 0xF0
_CHECKPOINT_SHUTDOWN = 0x00
_CHECKPOINT_ONLINE = 0x10
# A checkpoint record: header, two bytes that announce 88 bytes of main data, struct CheckPoint. The same from 13 to 18.
_CHECKPOINT_OFFSET = _RECORD_HEADER.size + 2
_CHECKPOINT_LENGTH = _CHECKPOINT_OFFSET + 88
_CHECKPOINT = struct.Struct("<QII48xq")  # redo, ThisTimeLineID, PrevTimeLineID, ..., time


@dataclass(frozen=True)
class ShutdownCheckpoint:
    """Where the last record of a cleanly stopped primary begins and ends. LSNs are ints."""

    start_lsn: int
    end_lsn: int
    timeline: int
    prev_timeline: int
    redo_lsn: int
    time: int
    """When the checkpoint began: Unix seconds by the primary's clock."""


@dataclass(frozen=True)
class _Record:
    start_lsn: int
    end_lsn: int
    prev_lsn: int
    kind: int
    resource_manager: int
    data: bytes


class _Invalid(Exception):
    """No valid record where one was looked for; the text says why, to be read after "the record at X/Y"."""


class _Wal:
    """Records of one timeline, from the segments in pg_wal. Methods that read raise OSError or _Invalid."""

    def __init__(self, data_dir: Path, control: ControlFile, timeline: int) -> None:
        self._directory = data_dir / "pg_wal"
        self._control = control
        self._timeline = timeline
        self._page_size = control.wal_block_size

    def _header_size(self, page: int) -> int:
        long = page % self._control.wal_segment_size == 0
        return _PAGE_HEADER.size + (_LONG_HEADER.size if long else 0)

    def _page(self, page: int) -> tuple[bytes, int]:
        """What follows the header of the page at LSN ``page``, and how much of it belongs to an earlier record."""
        size = self._control.wal_segment_size
        with (self._directory / wal_segment_name(self._timeline, page, size)).open("rb") as segment:
            segment.seek(page % size)
            data = segment.read(self._page_size)
        where = f"lies on page {format_lsn(page)}, which"
        if len(data) < self._page_size:
            raise _Invalid(f"{where} the file does not hold whole")
        magic, flags, timeline, address, left = _PAGE_HEADER.unpack_from(data)
        if magic not in _MAGICS:
            raise _Invalid(f"{where} has the unknown magic {magic:04X}")
        if address != page:
            raise _Invalid(f"{where} is of a recycled file ({format_lsn(address)})")
        # A segment begun on an earlier timeline keeps that timeline's number on its first pages.
        if not 0 < timeline <= self._timeline:
            raise _Invalid(f"{where} is of timeline {timeline}")
        header_size = self._header_size(page)
        if bool(flags & _IS_LONG) != (header_size > _PAGE_HEADER.size):
            raise _Invalid(f"{where} has the wrong kind of header")
        if flags & _IS_LONG and _LONG_HEADER.unpack_from(data, _PAGE_HEADER.size)[0] != self._control.system_identifier:
            raise _Invalid(f"{where} was written by another cluster")
        return data[header_size:], left if flags & _CONTINUES_RECORD else 0

    def first_record_from(self, lsn: int) -> int:
        """Where a record begins that follows one ending at ``lsn``: behind the page header if a page ends there."""
        return lsn if lsn % self._page_size else lsn + self._header_size(lsn)

    def start_of(self, length: int, *, end_lsn: int) -> int:
        """Where a record of ``length`` bytes begins that ends at ``end_lsn``; page headers may lie between."""
        left = _align(length)
        while True:
            page = (end_lsn - 1) // self._page_size * self._page_size
            room = end_lsn - page - self._header_size(page)
            if left <= room:
                return end_lsn - left
            left -= room
            end_lsn = page

    def record_at(self, start_lsn: int) -> _Record:
        page = start_lsn // self._page_size * self._page_size
        skipped = start_lsn - page - self._header_size(page)
        if skipped < 0 or start_lsn % _ALIGNMENT:
            raise _Invalid("begins where none can begin")
        data = self._page(page)[0][skipped:]
        # Only the length is sure to be on the first page; the rest of the header may be on the next one.
        length = int.from_bytes(data[:4], "little")
        if length < _RECORD_HEADER.size:
            raise _Invalid(f"has the length {length}")
        while len(data) < length:
            page += self._page_size
            more, left = self._page(page)
            if left != length - len(data):
                raise _Invalid(f"is not continued on page {format_lsn(page)}")
            data += more
        end_lsn = _align(page + self._page_size - (len(data) - length))
        data = data[:length]
        _length, _xid, prev_lsn, info, resource_manager, crc = _RECORD_HEADER.unpack_from(data)
        if crc32c(data[_RECORD_HEADER.size :] + data[:_CRC_OFFSET]) != crc:
            raise _Invalid("does not match its CRC")
        return _Record(start_lsn, end_lsn, prev_lsn, info & _INFO_MASK, resource_manager, data)

    def shutdown_checkpoint_at(self, start_lsn: int) -> ShutdownCheckpoint:
        record = self.record_at(start_lsn)
        if record.resource_manager != _RM_XLOG or record.kind not in (_CHECKPOINT_SHUTDOWN, _CHECKPOINT_ONLINE):
            raise _Invalid("is not a checkpoint")
        if record.kind == _CHECKPOINT_ONLINE:
            raise _Invalid("is a checkpoint of a running server")
        redo_lsn, timeline, prev_timeline, time = _CHECKPOINT.unpack_from(record.data, _CHECKPOINT_OFFSET)
        # Nothing is written while a shutdown checkpoint is made, so its redo point is the record itself.
        if len(record.data) != _CHECKPOINT_LENGTH or redo_lsn != start_lsn or timeline != self._timeline:
            raise _Invalid(f"has redo {format_lsn(redo_lsn)}, timeline {timeline} and {len(record.data)} bytes")
        return ShutdownCheckpoint(record.start_lsn, record.end_lsn, timeline, prev_timeline, redo_lsn, time)


def _align(value: int) -> int:
    return -(-value // _ALIGNMENT) * _ALIGNMENT


def _unreadable(error: OSError) -> DbopsError:
    return DbopsError(
        found=f"cannot read {error.filename}: {error.strerror}",
        expected="the WAL segment that holds the last checkpoint",
        remedy="check data_dir, and run as root or as the owner of the data directory; do not remove files from pg_wal",
    )


def read_shutdown_checkpoint(data_dir: Path, control: ControlFile) -> ShutdownCheckpoint:
    """The record with which the primary in ``data_dir`` was stopped; ``control`` is its pg_control, read afterwards.

    Raises DbopsError if pg_control does not say "shut down", or if the record it names is missing, damaged, or the
    checkpoint of a running server.
    """
    if control.state != SHUT_DOWN:
        raise DbopsError(
            found=f'pg_control of {data_dir} says "{control.state}"',
            expected=f'"{SHUT_DOWN}"',
            remedy="stop the primary with a fast shutdown and wait for it; a crashed one has to be started again first",
        )
    try:
        return _Wal(data_dir, control, control.timeline).shutdown_checkpoint_at(control.checkpoint_lsn)
    except OSError as error:
        raise _unreadable(error) from error
    except _Invalid as why:
        raise DbopsError(
            found=f"the WAL record at {format_lsn(control.checkpoint_lsn)} on timeline {control.timeline} {why}",
            expected="the shutdown checkpoint that pg_control names",
            remedy="do not promote: that a standby has all of the WAL cannot be proved; start this server again",
        ) from why


def shutdown_checkpoint_ending_at(
    data_dir: Path, control: ControlFile, *, timeline: int, end_lsn: int
) -> ShutdownCheckpoint | None:
    """The shutdown checkpoint of ``timeline`` that ends at ``end_lsn``, or None if another record, or none, ends there.

    For the candidate's host when the old primary's is gone: ``end_lsn`` is its ``pg_last_wal_replay_lsn()`` and
    ``control`` its own pg_control. Raises DbopsError if the segment is missing or unreadable.

    The record alone does not prove that the primary wrote nothing later: it may have been started again, and a primary
    writes the same record at the end of crash recovery. The caller must know that neither happened: ``time`` is later
    than its order to stop, and standby.signal was planted before it.
    """
    wal = _Wal(data_dir, control, timeline)
    try:
        checkpoint = wal.shutdown_checkpoint_at(wal.start_of(_CHECKPOINT_LENGTH, end_lsn=end_lsn))
    except OSError as error:
        raise _unreadable(error) from error
    except _Invalid:
        return None
    return checkpoint if checkpoint.end_lsn == end_lsn else None


def record_after(data_dir: Path, control: ControlFile, checkpoint: ShutdownCheckpoint) -> bool:
    """Whether pg_wal holds a whole record behind ``checkpoint`` on its timeline: the primary wrote on after it.

    The bytes behind the end of WAL may be those of a recycled segment, with records whose CRC is right; only one that
    names ``checkpoint`` as its predecessor counts. Raises DbopsError if the segment is unreadable.
    """
    wal = _Wal(data_dir, control, checkpoint.timeline)
    try:
        return wal.record_at(wal.first_record_from(checkpoint.end_lsn)).prev_lsn == checkpoint.start_lsn
    except (FileNotFoundError, _Invalid):
        return False
    except OSError as error:
        raise _unreadable(error) from error
