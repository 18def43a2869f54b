"""Group commit: one thread writes, and one sync of the disk carries everything that waited for it.

Whatever is handed in while a group is being written becomes the next group. An operation that fails takes no other
one down: its group is rolled back and each operation is run again alone.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, final

from sqlalchemy import Connection, exc

from palate.data.event import Event
from palate.errors import PalateError, StoreError
from palate.store.events import Appended, append
from palate.store.failures import is_passing, is_store_failure, translated
from palate.store.store import Store

T = TypeVar("T")
Operation = Callable[[Connection], Any]

_ATTEMPTS: Final = 4
"""How often an operation runs that other processes get in the way of."""


class QueueFullError(PalateError):
    """Too much waits to be written; the same may be taken a little later."""


@final
class Writer:
    """The one who writes. Safe to use from any thread; the futures resolve on the writer's own thread."""

    def __init__(self, store: Store, *, max_waiting: int = 4096, max_batch: int = 1024) -> None:
        """Start the thread.

        Args:
            store: where to write.
            max_waiting: rows that may wait; an operation counts as one row, an append as its events.
            max_batch: rows that one transaction may take.
        """
        self._store = store
        self._max_waiting, self._max_batch = max_waiting, max_batch
        self._waiting: deque[_Task] = deque()
        self._rows = 0
        self._changed = threading.Condition()
        self._closing = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait to be written."""
        return self._rows

    def submit(
        self, operation: Callable[[Connection], T], after_commit: Callable[[T], None] | None = None
    ) -> "Future[T]":
        """Run an operation in the next group's transaction.

        Args:
            operation: may be run again from the start after a rollback, so it has no effect but on the connection, and
                neither commits nor rolls back.
            after_commit: called with the result when it is durable, before the future resolves, on the writer's
                thread, in the order of the commits and, within a group, of submission. It should be quick.

        Returns:
            What the operation returned, once it is durable. Else StoreError (the store cannot be written), DataError
            (a value that no store holds) or what the operation raised: then nothing of it is stored.

        Raises:
            QueueFullError: too much is waiting.
            StoreError: the writer is closed.
        """
        return self._add(_Task(operation, None, 1, after_commit))

    def append(
        self, rows: Sequence[Event], after_commit: Callable[[Appended], None] | None = None
    ) -> "Future[Appended]":
        """Store events; like `submit` with `events.append`, but neighbours in the queue become one append.

        This makes many small requests as cheap as a few large ones. The time of receipt is taken when they are
        written.
        """
        return self._add(_Task(None, rows, max(1, len(rows)), after_commit))

    def between(self, task: Callable[[], T]) -> "Future[T]":
        """Run something on the writer's thread outside of any transaction, while nothing is written: a scrub."""
        return self._add(_Task(None, None, 1, None, task))

    def close(self, drain: bool = True) -> None:
        """Stop the thread, after what waits is written (`drain`) or refused with StoreError."""
        with self._changed:
            self._closing = True
            refused = [] if drain else list(self._waiting)
            if not drain:
                self._waiting.clear()
                self._rows = 0
            self._changed.notify()
        for task in refused:
            task.fail(self._closed())
        self._thread.join()

    def _closed(self) -> StoreError:
        return StoreError(f"{self._store.name}: the writer is closed; nothing of this was stored, send it again")

    def _add(self, task: "_Task") -> "Future[Any]":
        with self._changed:
            if self._closing:
                raise self._closed()
            # Alone, even a task larger than the bound is taken: it could never be otherwise.
            if self._rows and self._rows + task.rows > self._max_waiting:
                raise QueueFullError(f"{self._rows} rows wait to be written; try again a little later")
            self._rows += task.rows
            self._waiting.append(task)
            self._changed.notify()
        return task.future

    def _take(self) -> "list[_Task]":
        """Wait for the next group; empty: there will be none."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            group: list[_Task] = []
            rows = 0
            while self._waiting and (not group or rows + self._waiting[0].rows <= self._max_batch):
                if group and (self._waiting[0].outside or group[-1].outside):
                    break
                group.append(self._waiting.popleft())
                rows += group[-1].rows
            self._rows -= rows
            return group

    def _run(self) -> None:
        while group := self._take():
            group = [task for task in group if task.future.set_running_or_notify_cancel()]
            if group and group[0].outside:
                self._release()  # a scrub cannot pass a connection that is open on the file
                _resolve(group[0], group[0].outside)
            elif group:
                self._write(group)
        self._release()

    def _write(self, group: "list[_Task]") -> None:
        for _ in range(_ATTEMPTS):
            try:
                results = self._commit(group)
                break
            except Exception as error:
                self._roll_back(error)
                if len(group) == 1 and is_passing(error):
                    failure = error
                    continue
                if len(group) == 1 or is_store_failure(error):
                    known = translated(error, self._store.engine)
                    for task in group:
                        task.fail(known)
                else:
                    for task in group:
                        self._write([task])
                return
        else:
            group[0].fail(translated(failure, self._store.engine))
            return
        for task, result in zip(group, results, strict=True):
            _resolve(task, partial(task.announced, result))

    def _commit(self, group: "list[_Task]") -> list[Any]:
        if self._connection is None:
            self._connection = self._store.engine.connect().execution_options(begin="IMMEDIATE")
        results: list[Any] = []
        with self._connection.begin():
            at = 0
            while at < len(group):
                end = at + 1
                if group[at].events is not None:
                    while end < len(group) and group[end].events is not None:
                        end += 1
                    results += _append_all(self._connection, group[at:end])
                else:
                    operation = group[at].operation
                    assert operation is not None
                    results.append(operation(self._connection))
                at = end
        return results

    def _roll_back(self, error: Exception) -> None:
        """Make sure that nothing of a failed group lingers; after a failure of the store itself, connect anew."""
        connection = self._connection
        if connection is None:
            return
        if is_store_failure(error):
            with suppress(exc.SQLAlchemyError, OSError):
                connection.invalidate()
            self._release()
        elif connection.in_transaction():
            with suppress(exc.SQLAlchemyError):
                connection.rollback()

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(exc.SQLAlchemyError, OSError):
                connection.close()


@final
class _Task:
    """One thing to do, and where its result goes."""

    def __init__(
        self,
        operation: Operation | None,
        events: Sequence[Event] | None,
        rows: int,
        after_commit: Callable[[Any], None] | None,
        outside: Callable[[], Any] | None = None,
    ) -> None:
        self.operation, self.events, self.rows, self.outside = operation, events, rows, outside
        self.after_commit = after_commit
        self.future: Future[Any] = Future()

    def announced(self, result: Any) -> Any:
        if self.after_commit is not None:
            self.after_commit(result)
        return result

    def fail(self, error: BaseException) -> None:
        # A future that its owner cancelled while it waited takes no result.
        if not self.future.done():
            self.future.set_exception(error)


def _append_all(connection: Connection, tasks: "Sequence[_Task]") -> list[Appended]:
    """Store the events of many tasks as one append, and give each task its part."""
    parts = [task.events or () for task in tasks]
    whole = append(connection, [row for part in parts for row in part], time.time())
    if len(parts) == 1:
        return [whole]
    shares: list[Appended] = []
    start = stored = 0
    for part in parts:
        positions = whole.positions[start : start + len(part)]
        num_new = sum(position is not None for position in positions)
        shares.append(Appended(positions, whole.stored[stored : stored + num_new]))
        start, stored = start + len(part), stored + num_new
    return shares


def _resolve(task: _Task, make: Callable[[], Any]) -> None:
    try:
        result = make()
    except Exception as error:
        task.fail(error)
    else:
        task.future.set_result(result)
