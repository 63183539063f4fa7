# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_control of PostgreSQL 13 to 18, read without pg_controldata.

Reading it takes about 40 microseconds, no other process and no translated output: it is polled every few milliseconds
while the server shuts down and every client waits.

Source: src/include/catalog/pg_control.h. From 13 to 18 the offsets of everything read here are the same; only the
place of the CRC moved. Little-endian 64-bit servers only (x86-64, arm64).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from .._core.clock import Clock
from .._core.errors import DbopsError

SHUT_DOWN = "shut down"
IN_PRODUCTION = "in production"
IN_ARCHIVE_RECOVERY = "in archive recovery"
SHUT_DOWN_IN_RECOVERY = "shut down in recovery"

# enum DBState, in the words of pg_controldata (LC_MESSAGES=C).
_STATES = (
    "starting up",
    SHUT_DOWN,
    SHUT_DOWN_IN_RECOVERY,
    "shutting down",
    "in crash recovery",
    IN_ARCHIVE_RECOVERY,
    IN_PRODUCTION,
)
_WAL_LEVELS = ("minimal", "replica", "logical")

# pg_control_version -> offset of the CRC, which covers all bytes before it.
# 1300: PostgreSQL 13, 14, 15, 16; 1700: 17; 1800: 18, with a new flag before the last field.
_CRC_OFFSETS = {1300: 288, 1700: 288, 1800: 292}

_IDENTITY = struct.Struct("<QII")  # system_identifier, pg_control_version, catalog_version_no
_STATUS = struct.Struct("<I4xqQ")  # at 16: state, time, checkPoint
_CHECKPOINT = struct.Struct("<QII")  # at 40: redo, ThisTimeLineID, PrevTimeLineID
_CHECKPOINT_TIME = struct.Struct("<q")  # at 104
_RECOVERY = struct.Struct("<QI")  # at 136: minRecoveryPoint, minRecoveryPointTLI
_SETTINGS = struct.Struct("<i?3x5i?")  # at 172: wal_level, wal_log_hints, MaxConnections, ..., track_commit_timestamp
_WAL_SIZES = struct.Struct("<II")  # at 224: xlog_blcksz, xlog_seg_size
_CHECKSUMS = struct.Struct("<I")  # at 252: data_checksum_version

# The server writes the struct with one write() but a concurrent read() may still see half of it.
_TORN_READS = 10
_TORN_READ_PAUSE = 0.001


@dataclass(frozen=True)
class ControlFile:
    """The parts of pg_control an operation needs. LSNs are ints, times Unix seconds, sizes bytes."""

    system_identifier: int
    pg_control_version: int
    catalog_version: int
    state: str
    """In the words of pg_controldata: ``shut down``, ``in production``, ..."""
    written_at: int
    checkpoint_lsn: int
    """Start of the record of the latest checkpoint (on a standby: the latest restartpoint)."""
    redo_lsn: int
    timeline: int
    prev_timeline: int
    checkpoint_time: int
    min_recovery_point: int
    min_recovery_point_timeline: int
    wal_level: str
    wal_log_hints: bool
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    track_commit_timestamp: bool
    wal_block_size: int
    wal_segment_size: int
    data_checksum_version: int
    """0: pages carry no checksums."""


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _bit in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4), the checksum of pg_control and of WAL records."""
    crc = 0xFFFFFFFF
    table = _CRC32C
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def parse_control(data: bytes) -> ControlFile | None:
    """The bytes of pg_control as a value, or None where the CRC does not fit (a torn read or a damaged file).

    Raises DbopsError for a format this code does not know.
    """
    if len(data) < _IDENTITY.size:
        return None
    system_identifier, version, catalog_version = _IDENTITY.unpack_from(data)
    crc_offset = _CRC_OFFSETS.get(version)
    if crc_offset is None:
        raise DbopsError(
            found=f"pg_control_version {version}",
            expected=f"one of {', '.join(map(str, _CRC_OFFSETS))} (PostgreSQL 13 to 18 on x86-64 or arm64)",
            remedy="check that data_dir is a PostgreSQL 13 to 18 data directory; other versions are not supported",
        )
    if len(data) < crc_offset + 4 or int.from_bytes(data[crc_offset : crc_offset + 4], "little") != crc32c(
        data[:crc_offset]
    ):
        return None
    state, written_at, checkpoint_lsn = _STATUS.unpack_from(data, 16)
    redo_lsn, timeline, prev_timeline = _CHECKPOINT.unpack_from(data, 40)
    (checkpoint_time,) = _CHECKPOINT_TIME.unpack_from(data, 104)
    min_recovery_point, min_recovery_point_timeline = _RECOVERY.unpack_from(data, 136)
    wal_level, wal_log_hints, connections, workers, senders, prepared, locks, commit_ts = _SETTINGS.unpack_from(
        data, 172
    )
    wal_block_size, wal_segment_size = _WAL_SIZES.unpack_from(data, 224)
    (data_checksum_version,) = _CHECKSUMS.unpack_from(data, 252)
    return ControlFile(
        system_identifier=system_identifier,
        pg_control_version=version,
        catalog_version=catalog_version,
        state=_STATES[state],
        written_at=written_at,
        checkpoint_lsn=checkpoint_lsn,
        redo_lsn=redo_lsn,
        timeline=timeline,
        prev_timeline=prev_timeline,
        checkpoint_time=checkpoint_time,
        min_recovery_point=min_recovery_point,
        min_recovery_point_timeline=min_recovery_point_timeline,
        wal_level=_WAL_LEVELS[wal_level],
        wal_log_hints=wal_log_hints,
        max_connections=connections,
        max_worker_processes=workers,
        max_wal_senders=senders,
        max_prepared_transactions=prepared,
        max_locks_per_transaction=locks,
        track_commit_timestamp=commit_ts,
        wal_block_size=wal_block_size,
        wal_segment_size=wal_segment_size,
        data_checksum_version=data_checksum_version,
    )


def read_control(data_dir: Path, clock: Clock) -> ControlFile:
    """``global/pg_control`` below ``data_dir``, checked against its CRC; a torn read is repeated (at most 10 ms).

    Raises DbopsError where the file is missing, unreadable, damaged or of an unknown format.
    """
    path = data_dir / "global" / "pg_control"
    for _attempt in range(_TORN_READS):
        try:
            control = parse_control(path.read_bytes())
        except OSError as error:
            raise DbopsError(
                found=f"cannot read {path}: {error.strerror}",
                expected="the control file of a PostgreSQL data directory",
                remedy="check data_dir, and run as root or as the owner of the data directory",
            ) from error
        if control is not None:
            return control
        clock.sleep(_TORN_READ_PAUSE)
    raise DbopsError(
        found=f"{path} does not match its CRC",
        expected="an intact control file written by a 64-bit little-endian server",
        remedy="do not start this server; compare with pg_controldata, and restore the data directory from a backup",
    )
