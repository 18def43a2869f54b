"""Jobs: erasures that clean the files, and trainings, asked for or begun by policy. What a crash leaves is taken up."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from palate.errors import PalateError
from palate.service.contract import JobOut, NotFoundError, RefusedError
from palate.service.live import drift_of
from palate.service.machine import Machine
from palate.service.trainer import RetrainPolicy, Trainer
from palate.store import erasure, events, jobs

_log = logging.getLogger("palate.service")
_BEAT = 30.0
_SILENT = 300.0
"""Seconds between signs of life of a training, and without one after which it counts as dead."""


class Background:
    """The jobs of a process."""

    def __init__(self, machine: Machine, erasures: Path, trainer: Trainer | None, policy: RetrainPolicy) -> None:
        """`trainer` None: this process does not train."""
        self._machine, self._erasures, self._trainer, self._policy = machine, erasures, trainer, policy
        self._trained_at = time.time()

    def start(self) -> None:
        """Take up what a crash left, and begin to follow the policy."""
        self._machine.spawn(self._take_up())
        if self._trainer is not None and (self._policy.events or self._policy.hours or self._policy.drift):
            self._machine.spawn(self._train_when_due())

    def stop(self) -> None:
        """End a training that is at work."""
        if self._trainer is not None:
            self._trainer.stop()

    async def read(self, job_id: str) -> JobOut:
        """How a job stands.

        Raises:
            NotFoundError: there is none of this id.
        """
        found = await self._machine.read(lambda connection: jobs.read(connection, job_id))
        if found is None:
            raise NotFoundError("no job of this id")
        return _out(found)

    async def erase(self, user_id: str, forget: Callable[[str], None]) -> JobOut:
        """Take a person out of the tables, call `forget` once that is durable, and begin to clean the files.

        Raises:
            NotFoundError: nothing of this id is stored.
        """
        job_id = uuid.uuid4().hex

        def operation(connection: Connection) -> jobs.Job:
            if erasure.erase(connection, self._machine.store.salt, user_id, time.time()) is None:
                raise NotFoundError("no person of this id")
            return jobs.add(connection, job_id, "erasure", time.time())

        job = await self._machine.write(operation, lambda _: forget(user_id))
        self._machine.spawn(self._scrub(job_id, [user_id]))
        return _out(job)

    async def train(self) -> JobOut:
        """Begin a training.

        Raises:
            RefusedError: one is at work, or this process does not train.
        """
        trainer = self._trainer
        if trainer is None:
            raise RefusedError("this process does not train; run `palate retrain` on the machine that does")
        job_id = uuid.uuid4().hex

        def operation(connection: Connection) -> jobs.Job:
            now = time.time()
            for other in jobs.unfinished(connection, "retrain"):
                if other.updated_at > now - _SILENT:
                    raise RefusedError("a training is at work already; it ends before another begins")
                jobs.move(connection, other.job_id, "failed", now, error="the process that trained is gone")
            return jobs.add(connection, job_id, "retrain", now)

        job = await self._machine.write(operation)
        self._machine.spawn(self._train(job_id, trainer))
        return _out(job)

    async def _scrub(self, job_id: str, user_ids: Sequence[str] | None) -> None:
        """Take what was erased out of the files; without ids, which a crash forgets too, out of all of them."""

        async def clean() -> None:
            machine = self._machine
            finish = machine.writer.between(lambda: erasure.finish(machine.store, self._erasures, user_ids))
            await asyncio.wrap_future(finish)

        await self._run(job_id, clean)

    async def _train(self, job_id: str, trainer: Trainer) -> None:
        """Run a training; while it runs, its job shows signs of life."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(_BEAT)
                await self._machine.write(lambda connection: jobs.move(connection, job_id, "running", time.time()))

        async def work() -> None:
            alive = asyncio.create_task(beat())
            try:
                await asyncio.to_thread(trainer.run)
            finally:
                alive.cancel()

        await self._run(job_id, work)
        self._trained_at = time.time()

    async def _run(self, job_id: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work of a job and note how it ended."""
        await self._machine.write(lambda connection: jobs.move(connection, job_id, "running", time.time()))
        try:
            await work()
        except Exception as error:
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            _log.error("job %s failed: %s", job_id, reason)
            await self._machine.write(lambda c: jobs.move(c, job_id, "failed", time.time(), error=reason))
        else:
            await self._machine.write(lambda connection: jobs.move(connection, job_id, "done", time.time()))

    async def _take_up(self) -> None:
        """Erasures go on (the tables are clean already); a training is over, as its process ended with ours."""
        for job in await self._machine.read(jobs.unfinished):
            if job.kind == "erasure":
                await self._scrub(job.job_id, None)
            elif not self._machine.shared:  # else another process may be at it
                await self._machine.write(partial(_lose, job.job_id))

    async def _train_when_due(self) -> None:
        """Begin trainings as the policy says."""
        while True:
            await asyncio.sleep(self._policy.check_seconds)
            try:
                if await self._machine.read(self._is_due):
                    await self.train()
            except PalateError as error:  # one is at work already, or the store is away
                _log.info("no training now: %s", error)

    def _is_due(self, connection: Connection) -> bool:
        policy, since = self._policy, self._trained_at
        new = events.count(connection, since_received=since)
        if not new:
            return False
        return (
            0 < policy.events <= new
            or 0 < policy.hours * 3600 <= time.time() - since
            or 0 < policy.drift <= drift_of(connection, since)
        )


def _lose(job_id: str, connection: Connection) -> None:
    lost = "the service stopped; train again, and it goes on from the last checkpoint"
    jobs.move(connection, job_id, "failed", time.time(), error=lost)


def _out(job: jobs.Job) -> JobOut:
    return JobOut(job.job_id, job.kind, job.status, job.error, job.created_at, job.updated_at)
