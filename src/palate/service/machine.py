"""What everything behind the shell works with: the store, its writer, the threads, and work in the background.

The event loop makes lists itself, one after another with a look at its sockets in between: on a thread of its own each
would wait for the interpreter's lock at hundreds of small products. Two threads besides it and the readers: the
writer commits, `upkeep` does what takes longer (new items, other models).
"""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from palate.service.contract import OverloadedError
from palate.store import QueueFullError, Store, Writer
from palate.threads import keep_to_one_thread

T = TypeVar("T")
_log = logging.getLogger("palate.service")
_SWITCH = 0.0002
"""Seconds."""


class Machine:
    """The threads of one process around a store."""

    def __init__(self, store: Store, *, shared: bool, max_waiting: int) -> None:
        self.store = store
        self.shared = shared
        """Whether other processes write to the store too."""
        self.writer = Writer(store, max_waiting=max_waiting)
        self._turn = asyncio.Lock()
        self._upkeep = ThreadPoolExecutor(1, "upkeep", keep_to_one_thread)
        self._readers = ThreadPoolExecutor(2, "readers")
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = _Turns()
        self.closing = False

    async def write(self, operation: Callable[[Connection], T], after: Callable[[T], None] | None = None) -> T:
        """Run an operation in the writer's next transaction; returns when it is durable and `after` has been called.

        Raises:
            OverloadedError: too much waits to be written.
            StoreError: the store cannot be written.
        """
        try:
            return await asyncio.wrap_future(self.writer.submit(operation, after))
        except QueueFullError as error:
            raise OverloadedError(str(error)) from None

    async def read(self, read: Callable[[Connection], T]) -> T:
        """Read one moment of the store, off the event loop.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self.aside(partial(self._read, read))

    async def read_long(self, read: Callable[[Connection], T]) -> T:
        """Read what takes long, while lists are made; else like `read`."""

        def run() -> T:
            with self._turns.short():
                return self._read(read)

        return await self.aside(run)

    async def aside(self, function: Callable[[], T]) -> T:
        """Call something that may wait for the store, off the event loop; closing waits for it."""
        return await self._run(self._readers, function)

    async def keep_up(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something long, one after the other, while lists are made."""

        def run() -> T:
            with self._turns.short():
                return function(*arguments)

        return await self._run(self._upkeep, run)

    async def _run(self, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    async def in_turn(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something short on the event loop, after those who asked before and a look at the sockets."""
        async with self._turn:
            await asyncio.sleep(0)
            return function(*arguments)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin work that nobody waits for; it is cancelled when the process stops, and a failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def stop_background(self) -> None:
        """Cancel what was spawned."""
        self.closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Write what waits, then end the threads."""
        await asyncio.get_running_loop().run_in_executor(None, self.writer.close)
        for pool in (self._upkeep, self._readers):
            pool.shutdown(wait=True)
        self.store.close()

    def _read(self, read: Callable[[Connection], T]) -> T:
        with self.store.read() as connection:
            return read(connection)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("work in the background failed", exc_info=error)


class _Turns:
    """How often the interpreter changes threads.

    While a thread computes long, more often: a list gives its turn up at every product of matrices, and would wait the
    usual 5 ms each time to get it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._usual = threading.Lock(), 0, 0.0

    @contextmanager
    def short(self) -> Iterator[None]:
        """Often, until the last of those who asked for it is done."""
        with self._lock:
            if not self._inside:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(_SWITCH)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    sys.setswitchinterval(self._usual)
