"""The log of what was shown: many lists in one write, after they were answered."""

import asyncio
import time
from collections.abc import Sequence

from sqlalchemy import Connection

from palate.errors import StoreError
from palate.service.asked import asked_of
from palate.service.machine import Machine
from palate.service.monitors import Monitors
from palate.service.serving import Made
from palate.store import QueueFullError, erasure, recommendations
from palate.store.recommendations import ShownList

_FORGOTTEN = 60.0
"""Seconds for which it is remembered who was erased: longer than any list is in the making."""


class ListLog:
    """Lists on their way into the store; used on the event loop alone, but for `forget`."""

    def __init__(self, machine: Machine, monitors: Monitors, seconds: float) -> None:
        self._machine, self._monitors, self._seconds = machine, monitors, seconds
        self._waiting: list[tuple[float, ShownList]] = []
        self._erased: dict[str, float] = {}

    def add(self, made: Sequence[Made], requested_at: float) -> None:
        """Take lists that are being answered, and when they were requested."""
        now = time.time()
        self._waiting += [(requested_at, _shown(one, now)) for one in made]

    def forget(self, user_id: str) -> None:
        """Log no list of someone that was requested until now; call it on the writer's thread, after the erasure."""
        self._erased[user_id] = time.time()

    async def run(self) -> None:
        """Log what waits, again and again."""
        while True:
            await asyncio.sleep(self._seconds)
            self.flush()

    def flush(self) -> None:
        """Hand what waits to the writer; lists that cannot be logged are counted."""
        waiting, self._waiting = self._waiting, []
        for user_id in [user for user, at in list(self._erased.items()) if at < time.time() - _FORGOTTEN]:
            self._erased.pop(user_id, None)  # in place: `forget` comes from another thread
        if not waiting:
            return

        def write(connection: Connection) -> None:
            # Only here, on the writer's thread, is it known who was erased before: an erasure may have been written
            # since the lists were handed over (`forget` has been called), or just now in the same transaction.
            users = {shown.user_id for _, shown in waiting if shown.user_id is not None}
            erased = erasure.last_erasures(connection, self._machine.store.salt, users) | self._erased
            lists = [shown for at, shown in waiting if at > erased.get(shown.user_id or "", 0.0)]
            recommendations.add(connection, lists)

        try:
            future = self._machine.writer.submit(write)
        except (QueueFullError, StoreError):
            self._monitors.lost(len(waiting))
            return
        future.add_done_callback(lambda done: self._monitors.lost(len(waiting)) if done.exception() else None)


def _shown(made: Made, now: float) -> ShownList:
    listed, request = made.list, made.request
    return ShownList(
        listed.recommendation_id,
        request.user_id,
        request.user_id is None,
        listed.model_id,
        listed.variant,
        request.scenario,
        now,
        [line.item_id for line in listed.items],
        [line.score for line in listed.items],
        [line.propensity for line in listed.items],
        asked_of(request),
    )
