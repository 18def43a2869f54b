"""The running system: what the HTTP shell asks for, answered from the store, the people in memory and the models.

An event is acknowledged after its commit, and after the person in memory has taken it in: the next list of the same
person is made with it.
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from palate.data.event import Event
from palate.errors import PalateError
from palate.recommend import Recommender
from palate.service.background import Background
from palate.service.contract import (
    EventsTaken,
    ItemIn,
    ItemOut,
    ItemsTaken,
    JobOut,
    KeyOut,
    Listed,
    ListOut,
    ListRequest,
    ModelOut,
    NotFoundError,
    OverloadedError,
    Page,
    PersonIn,
    PersonOut,
    PredictOut,
    PredictRequest,
    RowError,
    Value,
)
from palate.service.keyring import Keyring
from palate.service.list_log import ListLog
from palate.service.lists import ListConfig
from palate.service.live import LiveConfig
from palate.service.machine import Machine
from palate.service.models import Models, plain
from palate.service.monitors import Monitors
from palate.service.people import Cursor, Kept, People, Stored
from palate.service.serving import ListError, Serving, Variants
from palate.service.shelf import Shelf, kind_of
from palate.service.state_log import StateLog
from palate.service.trainer import RetrainPolicy, Trainer
from palate.service.trends import TrendConfig, TrendReader
from palate.store import QueueFullError, Store, StoredEvent, paging, states
from palate.store import events as stored_events
from palate.store import items as stored_items
from palate.store import people as stored_people
from palate.store.events import Appended
from palate.store.keys import Role

_log = logging.getLogger("palate.service")
_RECENT = 20
_AHEAD = 86_400.0
"""Seconds that a client's clock may be ahead of ours."""


@dataclass(frozen=True)
class SystemConfig:
    """Sizes and habits of a running system."""

    lists: ListConfig = field(default_factory=ListConfig)
    """How lists are made."""
    people: int = 20_000
    """People held in memory, with what was last computed for them: some 10 kB each."""
    max_waiting: int = 8_192
    """Rows that may wait to be written; beyond, the service is overloaded."""
    log_seconds: float = 0.25
    """How long a list waits at most to be logged; lists are logged together, after they are answered."""
    states_seconds: float = 60.0
    """How often the fast weights of those who were adapted to are stored, for after a restart; 0: not at all."""
    live: LiveConfig = field(default_factory=LiveConfig)
    """When live figures promote a canary, end it, or roll back."""
    judge_seconds: float = 60.0
    """How often these are looked at; errors and times ten times as often."""
    freshen_seconds: float = 300.0
    """How often popularity and the rows of new items follow what was chosen since training; 0: not at all. In between,
    nobody's list changes but by their own events."""
    trends: TrendConfig = field(default_factory=TrendConfig)
    """What monitors read from the store."""
    watch_seconds: float = 0.5
    """How often the store is asked for what others wrote to it: models of a training, items, keys."""


class System:
    """Everything behind the HTTP shell; see `palate.service.contract.Running` for what each method promises."""

    def __init__(
        self,
        store: Store,
        variants: Variants,
        config: SystemConfig,
        *,
        load: Callable[[str], Recommender],
        erasures: Path,
        trainer: Trainer | None = None,
        policy: RetrainPolicy | None = None,
        shared: bool = False,
        followed: float = 0.0,
    ) -> None:
        """Put a system together and start its threads.

        Args:
            store: at the newest schema.
            variants: the models that the store's pointer names, on shelves as new as the store's items.
            config: sizes and habits.
            load: opens a model of the registry by its id, verified and without people.
            erasures: the log of who was erased, which outlives restores.
            trainer: runs trainings; None: this process does not train.
            policy: when it trains by itself; None: never.
            shared: whether other processes write to the store too.
            followed: when the store's pointer was last moved to what `variants` says.
        """
        self._config = config
        self._machine = machine = Machine(store, shared=shared, max_waiting=config.max_waiting)
        self._people = People(self._read_person, variants.served.model.config.meaning, config.people)
        key = hashlib.sha256(b"variants" + store.salt).digest()
        self._states = StateLog(machine, config.states_seconds)
        cursors = self._read_cursors if shared else None
        self.serving = Serving(variants, self._people, config.lists, key, cursors, note=self._states.add)
        self.monitors = Monitors()
        self._log = ListLog(machine, self.monitors, config.log_seconds)
        self._models = Models(machine, self.serving, self.monitors, load, config.live, followed)
        self._keys = Keyring(machine)
        self._background = Background(machine, erasures, trainer, policy or RetrainPolicy())

    def start(self) -> None:
        """Begin the work that nobody asks for; call it on the event loop."""
        self._machine.spawn(self._log.run())
        self._machine.spawn(self._states.run())
        self._machine.spawn(self._models.watch(self._config.watch_seconds, self._keys.refresh))
        self._machine.spawn(self._models.look_after(self._config.judge_seconds))
        if self._config.freshen_seconds:
            self._machine.spawn(self._models.freshen(self._config.freshen_seconds))
        if self._config.trends.seconds:
            self._machine.spawn(self._follow_trends(self._config.trends))
        self._background.start()

    async def close(self) -> None:
        """Write what waits, then stop."""
        self._background.stop()
        await self._machine.stop_background()
        self._log.flush()
        self._states.flush()
        await self._machine.close()

    # ---------------------------------------------------------------------------------------------- events

    async def add_events(self, events: Sequence[Event]) -> EventsTaken:
        """Store events; durable and in memory when this returns."""
        now = time.time()
        errors: list[RowError] = []
        rows: list[Event] = []
        for number, event in enumerate(events):
            when = event.time_or(now)
            if when > now + _AHEAD:
                errors.append(RowError(number, "future", "timestamp: more than a day ahead of the server's clock"))
                continue
            rows.append(event._replace(event_id=event.event_id or uuid.uuid4().hex, timestamp=when))
        if not rows:
            return EventsTaken(0, 0, errors)
        try:
            appended = await asyncio.wrap_future(self._machine.writer.append(rows, self._take))
        except QueueFullError as error:
            raise OverloadedError(str(error)) from None
        accepted = len(appended.stored)
        self.monitors.took(accepted, len(rows) - accepted, len(errors))
        return EventsTaken(accepted, len(rows) - accepted, errors)

    async def events_of(self, user_id: str, after: str | None, limit: int) -> Page:
        """A person's events, oldest stored first."""

        def read(connection: Connection) -> Page:
            if user_id not in stored_people.read(connection, [user_id]):
                raise NotFoundError("no person of this id")
            position = 0 if after is None else int(paging.decode(after, int))
            rows = stored_events.read_events(connection, user_id, position, limit + 1)
            more = paging.encode(rows[limit - 1].position) if len(rows) > limit else None
            return Page([row.event for row in rows[:limit]], more)

        return await self._machine.read(read)

    # ------------------------------------------------------------------------------------- people and items

    async def add_people(self, people_in: Sequence[PersonIn]) -> ItemsTaken:
        """Add or change people."""
        kinds = {
            column.name: "number" if column.kind == "numeric" else "text"
            for column in self.serving.variants.served.model.profile_encoder.columns
        }
        errors, rows = [], []
        for number, person in enumerate(people_in):
            wrong = _wrong_kind(person.attributes, kinds)
            if wrong is None:
                rows.append(stored_people.PersonChange(person.user_id, person.attributes))
            else:
                errors.append(RowError(number, "kind", wrong))

        def tell(stored: Sequence[stored_people.StoredPerson]) -> None:
            for person in stored:
                self._people.describe(person.user_id, plain(person.attributes))

        if rows:
            await self._machine.write(lambda connection: stored_people.upsert(connection, rows, time.time()), tell)
        return ItemsTaken(len(rows), errors)

    async def people(self, after: str | None, limit: int) -> Page:
        """People in the order of their ids."""
        page = await self._machine.read(lambda connection: stored_people.page(connection, after, limit))
        return Page([PersonIn(row.user_id, row.attributes) for row in page.rows], page.next)

    async def add_items(self, items_in: Sequence[ItemIn]) -> ItemsTaken:
        """Add or change items; they can be listed, or are hidden, when this returns."""
        shelf = self.serving.variants.served
        kinds = dict(shelf.kinds) | {
            column.name: "number" if column.kind == "numeric" else "text"
            for column in shelf.model.item_table.encoder.columns
        }
        errors, rows = [], []
        for number, item in enumerate(items_in):
            wrong = _wrong_kind(item.attributes, kinds)
            if wrong is None:
                rows.append(stored_items.ItemChange(item.item_id, item.attributes, item.hidden))
            else:
                errors.append(RowError(number, "kind", wrong))
        if rows:
            stored = await self._machine.write(lambda connection: stored_items.upsert(connection, rows, time.time()))
            await self._models.refresh(stored[-1].revision)
        return ItemsTaken(len(rows), errors)

    async def items(self, after: str | None, limit: int) -> Page:
        """Items in the order of their ids."""
        page = await self._machine.read(lambda connection: stored_items.page(connection, after, limit))
        known = self.serving.variants.served.model.vocabulary
        return Page(
            [ItemOut(row.item_id, row.attributes, row.hidden, row.item_id in known) for row in page.rows], page.next
        )

    # ----------------------------------------------------------------------------------------------- lists

    async def recommend(self, requests: Sequence[ListRequest]) -> Sequence[ListOut]:
        """Lists, in the order of the requests."""
        requested_at = time.time()
        try:
            made = await self._machine.in_turn(self.serving.lists, requests, requested_at)
        except ListError as error:
            self.monitors.failed(str(error))
            raise
        self._log.add(made, requested_at)
        self.monitors.listed(made)
        return [one.list for one in made]

    async def similar(self, item_id: str, k: int) -> Sequence[Listed]:
        """Items nearest to one."""
        return await self._machine.in_turn(partial(_similar, self.serving.variants.served), item_id, k)

    async def predict(self, request: PredictRequest) -> PredictOut:
        """How someone would rate items."""
        return await self._machine.in_turn(self.serving.predict, request, time.time())

    async def person(self, user_id: str) -> PersonOut:
        """What is known of someone."""

        def read(connection: Connection) -> tuple[stored_people.StoredPerson | None, list[StoredEvent]]:
            found = stored_people.read(connection, [user_id]).get(user_id)
            return found, stored_events.read_newest(connection, user_id, _RECENT)

        stored, recent = await self._machine.read(read)
        seen = await self._machine.in_turn(self.serving.adapted, user_id, time.time())
        if stored is None or seen is None:
            raise NotFoundError("no person of this id")
        shelf, person, adapted = seen
        history = adapted.state.history
        read_ = [column.name for column in shelf.model.profile_encoder.columns if column.name in person.attributes]
        learned = [f"a prior from {', '.join(read_)}" if read_ else "the prior of people about whom nothing is known"]
        support = min(len(history.items), shelf.model.config.model.max_events) + len(history.refused)
        if support:
            learned.append(f"{support} items chosen or refused, adapted to by {shelf.model.config.meta.learner}")
        return PersonOut(
            user_id,
            stored.attributes,
            stored.position,
            [row.event for row in recent],
            shelf.model.model_id,
            support,
            sum(value.numel() for name, value in adapted.state.fast.items() if not name.startswith("start.")),
            learned,
        )

    # --------------------------------------------------------------------------------------------- erasure

    async def erase(self, user_id: str) -> JobOut:
        """Forget a person at once; a job cleans the files."""

        def forget(user_id: str) -> None:
            self._log.forget(user_id)
            self._states.forget(user_id)
            self._people.forget(user_id)

        return await self._background.erase(user_id, forget)

    # ------------------------------------------------------------------------------- jobs, models and keys

    async def job(self, job_id: str) -> JobOut:
        """How a job stands."""
        return await self._background.read(job_id)

    async def retrain(self) -> JobOut:
        """Start training a candidate."""
        return await self._background.train()

    async def models(self) -> Sequence[ModelOut]:
        """All of the registry, newest first."""
        return await self._models.all()

    async def promote(self, model_id: str, share: float) -> ModelOut:
        """Serve a model to everyone, or as canary to a share of people."""
        return await self._models.promote(model_id, share)

    async def rollback(self) -> ModelOut:
        """Serve the previous model again, or end the canary."""
        return await self._models.rollback()

    async def add_key(self, role: Role, name: str) -> tuple[KeyOut, str]:
        """Make a key."""
        return await self._keys.add(role, name)

    async def keys(self) -> Sequence[KeyOut]:
        """All keys."""
        return await self._keys.all()

    async def revoke_key(self, key_id: str) -> KeyOut:
        """End a key."""
        return await self._keys.revoke(key_id)

    def role_of(self, key: str) -> tuple[str, Role] | None:
        """The id and role of a key."""
        return self._keys.role_of(key)

    def metrics(self) -> bytes:
        """Figures in the text format of Prometheus."""
        return self.monitors.text(self.serving.variants, self._machine.writer.waiting, len(self._people))

    def ready(self) -> str | None:
        """None when lists can be made."""
        return "stopping" if self._machine.closing else None

    # ---------------------------------------------------------------------------------------------- inside

    async def _follow_trends(self, config: TrendConfig) -> None:
        """Read for the monitors what comes of lists and how choices move, off the event loop."""
        reader = TrendReader(config)
        while True:
            await asyncio.sleep(config.seconds)
            negative = self.serving.variants.served.model.config.negative_events
            try:
                read = partial(reader.read, negative=negative, now=time.time())
                self.monitors.trends = await self._machine.read_long(read)
            except PalateError as error:
                _log.error("the monitors cannot read the store: %s", error)

    def _take(self, appended: Appended) -> None:
        for stored in appended.stored:
            self._people.take(stored)

    def _read_person(self, user_id: str) -> Stored | None:
        with self._machine.store.read() as connection:
            found = states.read_person(connection, user_id)
            if found is None:
                return None
            done = stored_events.read_events(connection, user_id)
        person, saved = found
        kept = None if saved is None else Kept(saved.model_id, saved.position, saved.returning, saved.payload)
        return Stored(plain(person.attributes), done, person.created_at, kept)

    def _read_cursors(self, user_ids: Sequence[str]) -> dict[str, Cursor]:
        with self._machine.store.read() as connection:
            found = stored_people.read(connection, user_ids)
        return {user_id: Cursor(plain(row.attributes), row.position, row.created_at) for user_id, row in found.items()}


def _similar(shelf: Shelf, item_id: str, k: int) -> list[Listed]:
    number = shelf.number_of.get(item_id)
    if number is None or not shelf.listed[number]:
        raise NotFoundError("no item of this id can be listed")
    hidden = len(shelf.unlisted)
    found = [
        line for line in shelf.model.similar_items(item_id, k + hidden) if shelf.listed[shelf.number_of[line.item_id]]
    ]
    return [
        Listed(
            rank,
            line.item_id,
            shelf.title(shelf.number_of[line.item_id]),
            line.score,
            1.0,
            line.reason,
            line.because,
        )
        for rank, line in enumerate(found[:k], start=1)
    ]


def _wrong_kind(attributes: Mapping[str, Value], kinds: Mapping[str, str]) -> str | None:
    """Why attributes do not fit those known by the same names."""
    for name, value in attributes.items():
        if value is not None and name in kinds and kind_of(value) != kinds[name]:
            return f"an attribute is a {kinds[name]} in this shop, and something else here"
    return None
