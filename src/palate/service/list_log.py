"""The log of what was shown: many lists in one write, after they were answered."""

import asyncio
import time
from collections.abc import Sequence

from palate.errors import StoreError
from palate.service.asked import asked_of
from palate.service.machine import Machine
from palate.service.monitors import Monitors
from palate.service.serving import Made
from palate.store import QueueFullError, recommendations
from palate.store.recommendations import ShownList

_FORGOTTEN = 60.0
"""Seconds for which it is remembered who was erased: longer than any list is in the making."""


class ListLog:
    """Lists on their way into the store; used on the event loop alone, but for `forget`."""

    def __init__(self, machine: Machine, monitors: Monitors, seconds: float) -> None:
        self._machine, self._monitors, self._seconds = machine, monitors, seconds
        self._waiting: list[ShownList] = []
        self._erased: dict[str, float] = {}

    def add(self, made: Sequence[Made]) -> None:
        """Take lists that are being answered."""
        now = time.time()
        self._waiting += [_shown(one, now) for one in made]

    def forget(self, user_id: str) -> None:
        """Log no list that was made for someone until now."""
        self._erased[user_id] = time.time()

    async def run(self) -> None:
        """Log what waits, again and again."""
        while True:
            await asyncio.sleep(self._seconds)
            self.flush()

    def flush(self) -> None:
        """Hand what waits to the writer; lists that cannot be logged are counted."""
        waiting, self._waiting = self._waiting, []
        lists = [one for one in waiting if one.at > self._erased.get(one.user_id or "", 0.0)]
        self._erased = {user: at for user, at in self._erased.items() if at > time.time() - _FORGOTTEN}
        if not lists:
            return
        try:
            future = self._machine.writer.submit(lambda connection: recommendations.add(connection, lists))
        except (QueueFullError, StoreError):
            self._monitors.lost(len(lists))
            return
        future.add_done_callback(lambda done: self._monitors.lost(len(lists)) if done.exception() else None)


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
