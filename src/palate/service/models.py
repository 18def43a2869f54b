"""Which models serve: shelves that follow the store's items, promotions, rollbacks, and what live figures decide.

The pointer in the store is the truth, and moves in one transaction; this process then follows it. A model is opened,
verified and warmed before the pointer names it, so a folder that cannot be read changes nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from sqlalchemy import Connection

from palate.errors import ModelError, PalateError
from palate.recommend import Recommender
from palate.service.contract import ModelOut, NotFoundError, RefusedError
from palate.service.item_follower import ItemFollower
from palate.service.live import LiveConfig, Verdict, judge
from palate.service.machine import Machine
from palate.service.monitors import Monitors
from palate.service.serving import Serving, Variants
from palate.service.shelf import Item, Shelf, exchanged, moved, refreshed
from palate.store import erasure, events, items, registry

_log = logging.getLogger("palate.service")


class Models:
    """The models of the registry, and those that serve."""

    def __init__(
        self,
        machine: Machine,
        serving: Serving,
        monitors: Monitors,
        load: Callable[[str], Recommender],
        live: LiveConfig,
        followed: float,
    ) -> None:
        """`load` opens a model of the registry by its id; `followed` is when the pointer moved to what serves now."""
        self._machine, self._serving, self._monitors = machine, serving, monitors
        self._load, self._live, self._followed = load, live, followed
        self._spare: Shelf | None = None
        """Of a model that is about to serve or has just stopped to, so that going back takes no time."""
        self._followers: dict[str, ItemFollower] = {}
        """By model id."""
        self._fresh: object = None
        """What the rows of items have taken in."""

    async def all(self) -> list[ModelOut]:
        """All of the registry, newest first."""
        return [_out(model) for model in await self._machine.read(registry.read_all)]

    async def promote(self, model_id: str, share: float) -> ModelOut:
        """Serve a model to everyone, or as canary to a share of people.

        Raises:
            NotFoundError: there is no such model.
            RefusedError: the gate refused it, its folder is not what was signed and registered, or it serves already.
        """
        found = await self._machine.read(lambda connection: registry.read(connection, model_id))
        if found is None:
            raise NotFoundError("no model of this id")
        if found.status == "refused":
            raise RefusedError("the gate refused this model; its report says why")
        await self._verify(model_id)
        now = time.time()

        def move(connection: Connection) -> registry.Model:
            if share >= 1:
                return registry.promote(connection, model_id, now)
            return registry.start_canary(connection, model_id, share, now)

        return await self._move(move)

    async def rollback(self) -> ModelOut:
        """End the canary, or serve the previous model again.

        Raises:
            RefusedError: there is neither, or the previous model's folder is not what was signed and registered.
        """
        await self._verify_previous(await self._machine.read(registry.current))
        return await self._move(lambda connection: registry.rollback(connection, time.time()))

    async def refresh(self, revision: int) -> None:
        """Bring the shelves up to a revision of the store's items."""
        await self._machine.keep_up(self._refresh, revision)

    async def watch(self, seconds: float, also: Callable[[], None]) -> None:
        """Follow what others write to the store: items, the pointer and, by `also`, what else is kept in memory."""
        while True:
            await asyncio.sleep(seconds)
            try:
                revision, changed = await self._machine.read(
                    lambda connection: (items.newest_revision(connection), registry.current(connection).changed_at)
                )
                await self.refresh(revision)
                if changed != self._followed:
                    await self._machine.keep_up(self._follow)
                await self._machine.aside(also)
            except PalateError as error:  # the store is away, or a model's folder: what serves goes on serving
                _log.error("cannot follow the store: %s", error)

    async def freshen(self, seconds: float) -> None:
        """Let the rows of items follow what was chosen since training: new ones warm up, popularity moves on.

        This is what changes lists of people who did nothing, so it happens at intervals and not with every event.
        """
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._machine.keep_up(self._freshen, time.time())
            except PalateError as error:
                _log.error("the rows of items cannot follow the events: %s", error)

    async def look_after(self, seconds: float) -> None:
        """Promote a canary that proved better; end one, or roll back, where people, errors or times say so.

        Errors and times are looked at ten times as often as people's choices.
        """
        number = 0
        while True:
            await asyncio.sleep(seconds / 10)
            number += 1
            try:
                pointers = await self._machine.read(registry.current)
                verdict = self._by_vitals(pointers)
                if verdict is None and number % 10 == 0:
                    verdict = await self._machine.read_long(partial(self._by_people, pointers))
                if verdict is not None and verdict.decision != "undecided":
                    await self._act(pointers, verdict)
            except PalateError as error:
                _log.error("cannot judge the models: %s", error)

    def _by_people(self, pointers: registry.Pointers, connection: Connection) -> Verdict:
        negative = self._serving.variants.served.model.config.negative_events
        return judge(connection, pointers, negative, self._live, time.time())

    def _by_vitals(self, pointers: registry.Pointers) -> Verdict | None:
        """What errors and times say of the canary or, soon after a promotion, of the model that serves everyone."""
        live = self._live
        tried, beside = pointers.canary, None if pointers.served is None else pointers.served.model_id
        if tried is None and pointers.previous and time.time() - pointers.changed_at < 3600 * live.watch:
            tried, beside = pointers.served, pointers.previous
        if tried is None or beside is None:
            return None
        ours, theirs = self._monitors.vitals(tried.model_id), self._monitors.vitals(beside)
        if len(ours.failed) < live.fewest:
            return None
        if ours.share_failed() > max(live.errors, 2 * theirs.share_failed()):
            return Verdict("worse", f"{ours.share_failed():.1%} of {len(ours.failed):,} lists failed")
        if len(theirs.seconds) >= live.fewest and ours.slow() > live.slowdown * theirs.slow():
            slow = f"{ours.slow() * 1e3:.1f} ms at the 99th percentile, {theirs.slow() * 1e3:.1f} with the other model"
            return Verdict("worse", f"a list takes {slow}")
        return None

    async def _act(self, pointers: registry.Pointers, verdict: Verdict) -> None:
        """Move the pointer as live figures say, and note why."""
        tried = pointers.canary or pointers.served
        assert tried is not None
        _log.warning("model %s: %s by live figures (%s)", tried.model_id, verdict.decision, verdict.reason)
        if verdict.decision == "worse":
            await self._verify_previous(pointers)

        def move(connection: Connection) -> registry.Model:
            if registry.current(connection) != pointers:
                raise registry.RegistryError("another process was first")
            now = time.time()
            if verdict.decision == "better":
                model = registry.promote(connection, tried.model_id, now)
            else:
                model = registry.rollback(connection, now)
            report = {**tried.report, "live": {"decision": verdict.decision, "reason": verdict.reason, "at": now}}
            registry.report(connection, tried.model_id, report, refused=verdict.decision == "worse")
            return model

        await self._move(move)
        if verdict.decision == "worse":
            self._monitors.rolled_back()

    async def _verify(self, model_id: str) -> None:
        """Open a model before the pointer names it.

        Raises:
            RefusedError: it cannot be; the message names no file of the server, the log does.
        """
        try:
            await self._machine.keep_up(self._shelve, model_id)
        except ModelError as error:
            _log.error("model %s is not served: %s", model_id, error)
            said = "could not be opened and verified; the server's log says why, and the models serve on as before"
            raise RefusedError(f"model {model_id} {said}") from None

    async def _verify_previous(self, pointers: registry.Pointers) -> None:
        """Open the model that a rollback returns to, unless it would end a canary."""
        if pointers.canary is None and pointers.previous is not None:
            await self._verify(pointers.previous)

    async def _move(self, move: Callable[[Connection], registry.Model]) -> ModelOut:
        try:
            model = await self._machine.write(move)
        except registry.RegistryError as error:
            raise RefusedError(str(error)) from None
        await self._machine.keep_up(self._follow)
        return _out(model)

    # ------------------------------------------------------------------------------- on the thread for upkeep

    def _shelve(self, model_id: str) -> Shelf:
        """A model of the registry with the items of now."""
        variants = self._serving.variants
        for shelf in (variants.served, variants.canary, self._spare):
            if shelf is not None and shelf.model.model_id == model_id:
                if shelf.revision == variants.served.revision:
                    return shelf
                return warmed(exchanged(variants.served, shelf.model))
        self._spare = warmed(exchanged(variants.served, self._load(model_id)))
        return self._spare

    def _follow(self) -> None:
        """Serve what the store's pointer names."""
        with self._machine.store.read() as connection:
            pointers = registry.current(connection)
        before = self._serving.variants
        assert pointers.served is not None
        served = self._shelve(pointers.served.model_id)
        canary = None if pointers.canary is None else self._shelve(pointers.canary.model_id)
        self._serving.variants = Variants(served, canary, pointers.share)
        if before.served.model.model_id != served.model.model_id:
            self._spare = before.served
        self._followed = pointers.changed_at

    def _refresh(self, revision: int) -> None:
        variants = self._serving.variants
        if variants.served.revision >= revision:
            return
        with self._machine.store.read() as connection:
            changed = items.changed_since(connection, variants.served.revision)
        if not changed:
            return
        rows = [Item(row.item_id, plain(row.attributes), row.hidden) for row in changed]
        served = warmed(refreshed(variants.served, rows, changed[-1].revision))
        canary = variants.canary
        if canary is not None:
            canary = warmed(refreshed(canary, rows, changed[-1].revision))
        self._serving.variants = Variants(served, canary, variants.share)

    def _freshen(self, now: float) -> None:
        """Begin anew for models that have just come, forget those that went; without news do nothing."""
        variants, store = self._serving.variants, self._machine.store
        with store.read() as connection:
            erasures = erasure.count(connection)
        up_to = events.settled(store)
        shelves = [shelf for shelf in (variants.served, variants.canary) if shelf is not None]
        news = (up_to, erasures, [(shelf.model.model_id, shelf.revision) for shelf in shelves])
        if news == self._fresh:
            return
        ids = [shelf.model.model_id for shelf in shelves]
        self._followers = {model_id: self._followers.get(model_id) or ItemFollower() for model_id in ids}
        fresh: list[Shelf] = []
        for shelf in shelves:
            choices = self._followers[shelf.model.model_id].catch_up(store, shelf.model, up_to)
            fresh.append(warmed(moved(shelf, shelf.model.with_item_choices(choices, now))))
        self._serving.variants = Variants(fresh[0], fresh[1] if len(fresh) > 1 else None, variants.share)
        self._fresh = news


def warmed(shelf: Shelf) -> Shelf:
    """The shelf, after a first list was made with it: what is computed once is computed now, not in a request."""
    shelf.model.recommend([], 1)
    _ = shelf.number_of, shelf.unlisted, shelf.kinds
    return shelf


def plain(attributes: Mapping[str, str | float | bool | None]) -> dict[str, str | float | bool | None]:
    """Attributes as stored, with whole numbers as numbers."""
    return {name: float(value) if type(value) is int else value for name, value in attributes.items()}


def _out(model: registry.Model) -> ModelOut:
    return ModelOut(model.model_id, model.status, model.created_at, model.trained_until, model.report)  # type: ignore[arg-type]
