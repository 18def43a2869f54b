"""What the service holds in memory of people: their events folded into a history, one event at a time.

A person is fold(take, nothing, events in the order of time), what `palate.data.choices` makes of the same log, so what
is held here can be dropped at any moment and made again from the store. Items are kept by id, not by a model's number:
a model can be exchanged under a person's feet.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from palate.data.episodes import EventMeaning, History, is_another_visit
from palate.data.event import Event
from palate.data.growing_history import GrowingHistory
from palate.store import StoredEvent


class Kept(NamedTuple):
    """Fast weights as the store has them."""

    model_id: str
    position: int
    """How many events they were made of."""
    returning: bool
    payload: bytes
    """See `Recommender.dump_state`."""


class Person:
    """One person's events so far. Not safe for threads: see `People`."""

    __slots__ = ("attributes", "created", "done", "kept", "memory", "position")

    def __init__(self, attributes: Mapping[str, str | float | bool | None], created: float = 0.0) -> None:
        self.attributes = dict(attributes)
        """As stored; which of them a model reads is its own matter."""
        self.created = created
        """When the store first heard of them: who is erased and comes back is another person."""
        self.position = 0
        """Events taken in, the cursor of the store."""
        self.done: GrowingHistory[str] = GrowingHistory()
        """What they chose and refused, by item id."""
        self.memory: tuple[object, object] | None = None
        """What was last computed for this person, and for which key; whoever computes decides on both."""
        self.kept: Kept | None = None
        """What was computed for them once, by this process or another; to be looked at before computing it again."""

    def take(self, event: Event, received_at: float, meaning: EventMeaning) -> bool:
        """Take in the next event; False, and nothing is changed, where it happened before one that is in already."""
        when = event.time_or(received_at)
        if self.done.last is not None and when < self.done.last:
            return False
        self.position += 1
        self.done.add(
            event.item_id,
            when,
            refuses=event.event_type in meaning.negative,
            rating=event.weight if event.event_type in meaning.rating else None,
        )
        return True

    def returning(self, now: float, visit_gap: float) -> bool:
        """Whether a list at `now` is for another visit: the last event is over `visit_gap` hours ago (0: never)."""
        return is_another_visit(self.done.last, now, visit_gap)

    def history(self, number_of: Mapping[str, int], *, returning: bool = False) -> History:
        """The history in the numbers of a vocabulary; items that it lacks are left out."""
        return self.done.history(number_of.get, returning=returning)


class Stored(NamedTuple):
    """A person as the store has them."""

    attributes: Mapping[str, str | float | bool | None]
    events: Iterable[StoredEvent]
    """All of theirs, by position."""
    created: float = 0.0
    kept: Kept | None = None


def fold(stored: Stored, meaning: EventMeaning) -> Person:
    """Make a person from all that is stored of them."""
    person = Person(stored.attributes, stored.created)
    person.kept = stored.kept
    # Stable: by time and, within the same, by position.
    for event, _, received_at in sorted(stored.events, key=lambda one: one.event.time_or(one.received_at)):
        person.take(event, received_at, meaning)
    return person


class Cursor(NamedTuple):
    """How the store stands with a person."""

    attributes: Mapping[str, str | float | bool | None]
    position: int
    created: float


class People:
    """The most recently seen people, each equal to what folding the store anew would give.

    The store's commits tell of changes in their order; a reader holds `lock` while it looks at a person. An event that
    was committed meanwhile waits, its writer does not: whoever has the lock next takes it in first.
    """

    def __init__(self, read: Callable[[str], Stored | None], meaning: EventMeaning, capacity: int) -> None:
        self.lock = threading.RLock()
        self._read = read
        self._meaning = meaning
        self._capacity = capacity
        self._people: OrderedDict[str, Person] = OrderedDict()
        self._told: deque[StoredEvent] = deque()

    def __len__(self) -> int:
        return len(self._people)

    def get(self, user_id: str, now: Cursor | None = None) -> Person | None:
        """The person, read from the store when not at hand or, with `now`, not as it says; None: a stranger.

        `now` is what the store says of them, where others write to it as well.
        """
        with self.lock:
            self._take_told()
            person = self._people.get(user_id)
            if person is None or (now is not None and (person.created, person.position) != (now.created, now.position)):
                # Under the lock, or a commit between the reading and the keeping would be lost.
                stored = self._read(user_id)
                if stored is None:
                    self._people.pop(user_id, None)
                    return None
                person = self._people[user_id] = fold(stored, self._meaning)
                while len(self._people) > self._capacity:
                    self._people.popitem(last=False)
            elif now is not None and person.attributes != now.attributes:
                self.describe(user_id, now.attributes)
            self._people.move_to_end(user_id)
            return person

    def take(self, stored: StoredEvent) -> None:
        """Tell of an event that was committed; one whose position the person has reached counts as taken."""
        self._told.append(stored)
        if self.lock.acquire(blocking=False):
            try:
                self._take_told()
            finally:
                self.lock.release()

    def describe(self, user_id: str, attributes: Mapping[str, str | float | bool | None]) -> None:
        """Tell of new attributes, complete."""
        with self.lock:
            self._take_told()
            person = self._people.get(user_id)
            if person is not None:
                person.attributes = dict(attributes)
                person.memory = None

    def forget(self, user_id: str) -> None:
        """Drop a person, all that was computed for them too."""
        with self.lock:
            self._take_told()
            self._people.pop(user_id, None)

    def clear(self) -> None:
        """Drop everyone."""
        with self.lock:
            self._told.clear()
            self._people.clear()

    def _take_told(self) -> None:
        """Take in the events that were told of, in their order; with the lock held."""
        while self._told:
            event, position, received_at = self._told.popleft()
            person = self._people.get(event.user_id)
            if person is None or position <= person.position:
                continue
            if position != person.position + 1 or not person.take(event, received_at, self._meaning):
                del self._people[event.user_id]  # out of order: the next reader folds the store anew
