"""A disk for SQLite that fails on demand and notes every write and sync, and a driver to run the real store on it.

`RecordingDisk` is an apsw VFS over the usual one: files are real, and what is done to them is noted in order.
`files_after` says what a power cut at some point of that record may leave: what was synced, and of what was not, any
part. `ApswDriver` is as much of Python's sqlite3 module as SQLAlchemy asks for, over apsw, so that the engine, the
schema, the statements and the writer are those of the product; only the layer between them and SQLite is not.
"""

import json
import os
import random
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw
from sqlalchemy import make_url

from palate.store.store import Store, make_engine

SECTOR = 512
_MARK = b"\xf0STEP\x0f"
"""Begins each step of a record in a file; a step that a kill cut short is passed over to the next mark."""
_SIZES = struct.Struct(">III")
"""Length of what a step says, of its data, and the checksum of both."""


class Step(NamedTuple):
    """One thing done to a file, or, of kind "note", something that the test did."""

    kind: str
    file: str = ""
    offset: int = 0
    data: bytes = b""
    note: object = None


class RecordingDisk(apsw.VFS):
    """Register with a name; `steps` is the record, `sync_fails` and `full` make the next syncs or writes fail.

    With a file the record is appended to it instead, for `read_record`. A step is noted before SQLite, and so anyone
    who waits for it, goes on: the steps of several processes stand in an order in which they may have happened.
    """

    def __init__(self, name: str, file: Path | None = None) -> None:
        self.name = name
        self.steps: list[Step] = []
        self._file = None if file is None else os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self.recording = True
        self.sync_fails = self.full = False
        self._lock = threading.Lock()
        super().__init__(name, "")

    def note(self, what: object) -> None:
        """Put something of the test's own in the record."""
        self.add(Step("note", note=what))

    def add(self, step: Step) -> None:
        """Record a step."""
        if not self.recording:
            return
        with self._lock:
            if self._file is None:
                self.steps.append(step)
            else:
                os.write(self._file, _to_bytes(step))

    def xOpen(self, name: Any, flags: list[int]) -> "_RecordedFile":
        """Open a file; temporary ones have no name and are of no interest after a cut."""
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _RecordedFile(self, name, path or "", flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        """Delete a file, durably where SQLite asks for it."""
        super().xDelete(filename, syncdir)
        self.add(Step("delete" if syncdir else "delete unsynced", filename))


class _RecordedFile(apsw.VFSFile):
    def __init__(self, disk: RecordingDisk, name: Any, path: str, flags: list[int]) -> None:
        self._disk, self._path = disk, path
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._disk.full:
            raise _failure(apsw.FullError("the disk is full"), apsw.SQLITE_FULL)
        super().xWrite(data, offset)
        self._disk.add(Step("write", self._path, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._disk.add(Step("truncate", self._path, size))

    def xSync(self, flags: int) -> None:
        if self._disk.sync_fails:
            raise _failure(apsw.IOError("the sync failed"), apsw.SQLITE_IOERR_FSYNC)
        super().xSync(flags)
        self._disk.add(Step("sync", self._path))


def read_record(file: Path) -> list[Step]:
    """Return the steps that disks noted in a file."""
    content = file.read_bytes() if file.exists() else b""
    steps, at = [], content.find(_MARK)
    while at >= 0:
        start, end = at + len(_MARK) + _SIZES.size, at + len(_MARK)
        if start <= len(content):
            said, length, checksum = _SIZES.unpack(content[end:start])
            whole = content[start : start + said + length]
            if len(whole) == said + length and zlib.crc32(whole) == checksum:
                kind, name, offset = json.loads(whole[:said])
                steps.append(Step(kind, name, offset, whole[said:]))
                end = start + len(whole)
        at = content.find(_MARK, end)
    return steps


def _to_bytes(step: Step) -> bytes:
    said = json.dumps([step.kind, step.file, step.offset]).encode()
    whole = said + step.data
    return _MARK + _SIZES.pack(len(said), len(step.data), zlib.crc32(whole)) + whole


def files_after(steps: Iterable[Step], rng: random.Random, there: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what a power cut at the end of some steps may leave, by the name of the file.

    What was synced is there. Of what was not, each write is kept, lost, or torn at sectors, whatever its order; a file
    whose own name was never synced, or that was deleted without a sync of the folder, may be there or not.

    Args:
        steps: up to the cut.
        rng: decides what is lost.
        there: what was durable before the first step.
    """
    durable: dict[str, bytearray] = {name: bytearray(content) for name, content in there.items()}
    pending: dict[str, list[Step]] = {}
    gone: dict[str, bytearray] = {}
    for step in steps:
        if step.kind in ("write", "truncate"):
            pending.setdefault(step.file, []).append(step)
        elif step.kind == "sync":
            content = durable.setdefault(step.file, bytearray())
            for waiting in pending.pop(step.file, []):
                _apply(content, waiting)
        elif step.kind.startswith("delete"):
            pending.pop(step.file, None)
            left = durable.pop(step.file, None)
            if left is not None and step.kind == "delete unsynced":
                gone[step.file] = left
    for name, content in gone.items():
        if name not in durable and rng.random() < 0.5:
            durable[name] = content
    luck = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    in_order = rng.random() < 0.3
    for name, waiting in pending.items():
        if name not in durable and rng.random() < 0.5:
            continue
        content = durable.setdefault(name, bytearray())
        if in_order:
            waiting = waiting[: rng.randint(0, len(waiting))]
        for step in waiting:
            if in_order or rng.random() < luck:
                _apply(content, step)
            elif step.kind == "write" and rng.random() < 0.5:
                for start in range(0, len(step.data), SECTOR):
                    if rng.random() < luck:
                        part = step.data[start : start + SECTOR]
                        _apply(content, step._replace(offset=step.offset + start, data=part))
    return {name: bytes(content) for name, content in durable.items()}


def _failure(error: apsw.Error, code: int) -> apsw.Error:
    """Return an error with the code that SQLite is to see."""
    error.extendedresult = code
    return error


def _apply(content: bytearray, step: Step) -> None:
    if step.kind == "truncate":
        del content[step.offset :]
        return
    if len(content) < step.offset:
        content.extend(bytes(step.offset - len(content)))
    content[step.offset : step.offset + len(step.data)] = step.data


def open_store(file: Path, disk: RecordingDisk, pragmas: Sequence[str] = ()) -> Store:
    """Open the real store on a recording disk."""
    return Store(make_engine(make_url(f"sqlite:///{file}"), module=ApswDriver(disk.name, pragmas)))


class Error(Exception):
    """Of the driver; SQLAlchemy and the store read the code."""

    sqlite_errorcode = 0


class OperationalError(Error):
    """What apsw raised."""


class ApswDriver:
    """What SQLAlchemy needs of a module like sqlite3, over apsw and one disk."""

    paramstyle = "qmark"
    sqlite_version_info = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    version = version_info = apsw.apsw_version()
    Error = DatabaseError = DataError = IntegrityError = InterfaceError = InternalError = Error
    NotSupportedError = ProgrammingError = Error
    OperationalError = OperationalError
    Binary = bytes

    def __init__(self, disk: str, pragmas: Sequence[str]) -> None:
        self._disk, self._pragmas = disk, pragmas

    def connect(self, filename: str, **_: object) -> "_Connection":
        """Open a file on the disk."""
        return _told(lambda: _Connection(apsw.Connection(filename, vfs=self._disk), self._pragmas))


class _Connection:
    isolation_level: object = None

    def __init__(self, inner: apsw.Connection, pragmas: Sequence[str]) -> None:
        self._inner = inner
        for pragma in pragmas:
            inner.execute(pragma)

    def cursor(self) -> "_Cursor":
        return _Cursor(self._inner)

    def commit(self) -> None:
        if self._inner.in_transaction:
            _told(lambda: self._inner.execute("COMMIT"))

    def rollback(self) -> None:
        if self._inner.in_transaction:
            _told(lambda: self._inner.execute("ROLLBACK"))

    def close(self) -> None:
        with suppress(
            apsw.Error
        ):  # closing tidies up the log, which a failing disk refuses; sqlite3 is silent on it too
            self._inner.close(True)

    def create_function(self, name: str, count: int, function: Any, **_: object) -> None:
        self._inner.create_scalar_function(name, function, count)


class _Cursor:
    arraysize = 1
    lastrowid = rowcount = -1
    description: Any = None

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection, self._rows = connection, iter(())

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> "_Cursor":
        return self._run(lambda cursor: cursor.execute(statement, tuple(parameters)))

    def executemany(self, statement: str, many: Sequence[Sequence[Any]]) -> "_Cursor":
        return self._run(lambda cursor: cursor.executemany(statement, [tuple(one) for one in many]))

    def _run(self, run: Callable[[Any], Any]) -> "_Cursor":
        def work() -> None:
            before = self._connection.total_changes()
            cursor = self._connection.cursor()
            # Asked for at the first row: apsw knows no description after the last one.
            cursor.exec_trace = lambda inner, *_: found.append(inner.description) or True
            found: list[Any] = []
            run(cursor)
            self.description = tuple(part + (None,) * 5 for part in found[0]) if found and found[0] else None
            self._rows = iter(cursor.fetchall())
            self.rowcount = self._connection.total_changes() - before
            self.lastrowid = self._connection.last_insert_rowid()

        _told(work)
        return self

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchmany(self, size: int = 1) -> list[Any]:
        return [row for _, row in zip(range(size), self._rows, strict=False)]

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def close(self) -> None:
        self._rows = iter(())


def _told(work: Callable[[], Any]) -> Any:
    """Run something and tell its failure as the driver's."""
    try:
        return work()
    except apsw.Error as error:
        told = OperationalError(f"{type(error).__name__}: {error}")
        told.sqlite_errorcode = getattr(error, "extendedresult", 1)
        raise told from error
