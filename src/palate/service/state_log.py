"""Fast weights on their way into the store: those of many people in one write, long after their lists were answered.

Losing them costs time and nothing else, so they wait for a while, for a person who goes on is adapted to again with
every event and only the last weights are worth writing; and there is a bound on how many wait.
"""

import asyncio
import logging
import time
from typing import NamedTuple

from palate.errors import StoreError
from palate.recommend import Recommender
from palate.service.lists import Adapted
from palate.service.machine import Machine
from palate.service.people import Person
from palate.store import QueueFullError, states
from palate.store.states import SavedState

_WAITING = 2_000
"""People whose weights may wait; more are adapted to again should they come back after a restart."""
_TOGETHER = 32
"""Written in one transaction, and made ready without a look at the sockets: no longer than a list takes."""
_PAUSE = 0.02
"""Seconds between two such writes, for events and lists."""
_log = logging.getLogger("palate.service")


class _Learned(NamedTuple):
    model: Recommender
    created: float
    position: int
    adapted: Adapted


class StateLog:
    """Fast weights that wait to be written; used on the event loop alone, but for `forget`."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        """`seconds` between two writings; 0: nothing is written."""
        self._machine, self._seconds = machine, seconds
        self._waiting: dict[str, _Learned] = {}

    def add(self, user_id: str, model: Recommender, person: Person, adapted: Adapted) -> None:
        """Take someone's weights, in place of earlier ones; none that the store has, or that tell of nobody."""
        if adapted.told or not adapted.personal or not self._seconds:
            return
        self._waiting.pop(user_id, None)  # the newest come last
        self._waiting[user_id] = _Learned(model, person.created, person.position, adapted)
        if len(self._waiting) > _WAITING:
            self._take()

    def forget(self, user_id: str) -> None:
        """Write nothing of someone; what is handed over already is not stored of people whom the store forgot."""
        self._waiting.pop(user_id, None)

    async def run(self) -> None:
        """Write what waits, again and again."""
        while self._seconds:
            await asyncio.sleep(self._seconds)
            for _ in range(0, len(self._waiting), _TOGETHER):
                self._hand_over()
                await asyncio.sleep(_PAUSE)

    def flush(self) -> None:
        """Hand all that waits to the writer."""
        while self._waiting:
            self._hand_over()

    def _hand_over(self) -> None:
        """Hand the oldest that wait to the writer."""
        now = time.time()
        rows: list[SavedState] = []
        created: dict[str, float] = {}
        while len(rows) < _TOGETHER and (taken := self._take()) is not None:
            user_id, (model, created[user_id], position, adapted) = taken
            state = adapted.state
            payload = model.dump_state(state, adapted.profile)
            rows.append(SavedState(user_id, state.model_id, position, state.history.returning, payload, now))
        if not rows:
            return

        def write() -> None:
            with self._machine.store.write() as connection:
                states.save(connection, rows, created)

        try:
            future = self._machine.writer.between(write)
        except (QueueFullError, StoreError) as error:
            _log.warning("fast weights of %d people are not kept: %s", len(rows), error)
            return
        future.add_done_callback(lambda done: _tell(done.exception(), len(rows)))

    def _take(self) -> tuple[str, _Learned] | None:
        """Take out the oldest; `forget` may come in between from another thread."""
        while (user_id := next(iter(self._waiting), None)) is not None:
            if (found := self._waiting.pop(user_id, None)) is not None:
                return user_id, found
        return None


def _tell(error: BaseException | None, count: int) -> None:
    if error is not None:
        _log.warning("fast weights of %d people are not kept: %s", count, error)
