"""What must be in a store, given what was asked of it and what it acknowledged; safe to use from several threads.

Moments are counted, not timed: each request takes one when it is sent and one when it has ended. What a store holds is
asked for as of a span of moments: all that was acknowledged before the span, nothing that was sent after it, and of
what overlaps it either.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf


@dataclass
class Sent:
    """An event, from when it was first sent."""

    event_id: str
    user_id: str
    start: float
    end: float = inf
    """When its fate was settled: acknowledged, or the request had failed and nothing of it was on its way."""
    acknowledged: bool = False


@dataclass
class Erasure:
    """A request to forget someone; it has taken effect for certain from `end` on, and cannot have before `start`."""

    user_id: str
    start: float
    end: float = inf


class Ledger:
    """Events and erasures of one home."""

    def __init__(self, stored: Iterable[tuple[str, str]]) -> None:
        """Begin with a store that holds these (event id, user id)."""
        self._clock = itertools.count(1)
        self._lock = threading.Lock()
        self.events: dict[str, Sent] = {one: Sent(one, user, 0, 0, True) for one, user in stored}
        self.erasures: dict[str, list[Erasure]] = {}
        self._shown: dict[str, float] = {}

    def now(self) -> float:
        """The next moment."""
        return next(self._clock)

    def send(self, event_ids: Iterable[str], user_ids: Iterable[str]) -> None:
        """Note that events are sent; those that were sent before stay as they are."""
        with self._lock:
            now = self.now()
            for event_id, user_id in zip(event_ids, user_ids, strict=True):
                self.events.setdefault(event_id, Sent(event_id, user_id, now))

    def settle(self, event_ids: Iterable[str], acknowledged: bool) -> None:
        """Note that a request with these events has ended."""
        with self._lock:
            now = self.now()
            for event_id in event_ids:
                event = self.events[event_id]
                event.end = min(event.end, now)
                event.acknowledged |= acknowledged

    def show(self, user_id: str) -> None:
        """Note that a list is asked for: it is logged with the id."""
        self._shown[user_id] = self.now()

    def erase(self, user_id: str) -> Erasure:
        """Note that someone is to be forgotten; set `end` of the result when that is acknowledged."""
        with self._lock:
            erasure = Erasure(user_id, self.now())
            self.erasures.setdefault(user_id, []).append(erasure)
            return erasure

    def withdraw(self, erasure: Erasure) -> None:
        """Note that an erasure was refused, or turned out not to have happened."""
        with self._lock:
            self.erasures[erasure.user_id].remove(erasure)

    def acknowledged(self) -> list[str]:
        """Ids of acknowledged events."""
        with self._lock:
            return [event.event_id for event in self.events.values() if event.acknowledged]

    def check(self, found: Iterable[str], since: float, until: float, what: str) -> None:
        """Ask whether a store as of a moment from `since` to `until` may hold these events.

        Raises:
            AssertionError: something is missing, comes twice, or should not be there; the message begins with `what`.
        """
        counted = Counter(found)
        twice = [event_id for event_id, count in counted.items() if count > 1]
        assert not twice, f"{what}: {len(twice)} events twice, such as {twice[:3]}"
        with self._lock:
            unknown = [event_id for event_id in counted if event_id not in self.events]
            assert not unknown, f"{what}: {len(unknown)} events that nobody sent, such as {unknown[:3]}"
            due = [event for event in self.events.values() if self._must(event, since, until)]
            lost = [event.event_id for event in due if event.event_id not in counted]
            assert not lost, f"{what}: {len(lost)} of {len(due)} acknowledged events missing, such as {lost[:3]}"
            wrong = [one for one in counted if self._must_not(self.events[one], since, until)]
            assert not wrong, f"{what}: {len(wrong)} events that were erased or sent later, such as {wrong[:3]}"

    def check_restored(self, found: Iterable[str], since: float, until: float) -> None:
        """Ask whether a store holds what a backup of a moment from `since` to `until` held, less who was erased since.

        Raises:
            AssertionError: it does not.
        """
        there = set(found)
        with self._lock:
            events = self.events.values()
            erased = {user_id for user_id, erasures in self.erasures.items() if erasures}
            due = [one for one in events if one.user_id not in erased and self._must(one, since, until)]
            lost = [one.event_id for one in due if one.event_id not in there]
            assert not lost, f"restored: {len(lost)} of {len(due)} events of the backup missing, such as {lost[:3]}"
            wrong = [one.event_id for one in events if one.event_id in there and self._must_not(one, inf, until)]
            assert not wrong, f"restored: {len(wrong)} events that were erased or sent later, such as {wrong[:3]}"

    def resolve(self, found: Iterable[str], what: str) -> None:
        """Learn from a store at rest what became of requests that were cut off, and check that each did all or nothing.

        Raises:
            AssertionError: an erasure took effect in part.
        """
        there = set(found)
        with self._lock:
            now = self.now()
            for event in self.events.values():
                event.end = min(event.end, now)
                event.acknowledged |= event.event_id in there
            for erasures in self.erasures.values():
                for erasure in [one for one in erasures if one.end == inf]:
                    before = [one for one in self._of(erasure.user_id) if one.acknowledged and one.end < erasure.start]
                    older = [one for one in erasures if one is not erasure]
                    before = [one for one in before if all(other.end < one.start for other in older)]
                    left = sum(one.event_id in there for one in before)
                    assert left in (0, len(before)), (
                        f"{what}: of {erasure.user_id}, whose erasure was cut off, {left} of {len(before)} are left"
                    )
                    if left:
                        erasures.remove(erasure)
                    else:
                        erasure.end = now

    def restart(self, found: Iterable[str]) -> None:
        """Go on from a store that was put in the place of the other."""
        there = set(found)
        with self._lock:
            now = self.now()
            self.events = {
                one: Sent(one, event.user_id, now, now, True) for one, event in self.events.items() if one in there
            }
            self.erasures = {}

    def gone(self) -> list[str]:
        """Ids of people who were erased and of whom nothing was sent or shown afterwards."""
        with self._lock:
            return [
                user_id
                for user_id, erasures in self.erasures.items()
                if erasures
                and all(one.end < inf for one in erasures)
                and self._shown.get(user_id, 0) < erasures[-1].start
                and all(event.end < erasures[-1].start for event in self._of(user_id))
            ]

    def _of(self, user_id: str) -> list[Sent]:
        return [event for event in self.events.values() if event.user_id == user_id]

    def _must(self, event: Sent, since: float, until: float) -> bool:
        erasures = self.erasures.get(event.user_id, ())
        return (
            event.acknowledged
            and event.end <= since
            and not any(one.start < until and one.end > event.start for one in erasures)
        )

    def _must_not(self, event: Sent, since: float, until: float) -> bool:
        erasures = self.erasures.get(event.user_id, ())
        return event.start > until or any(one.end <= since and event.end < one.start for one in erasures)
