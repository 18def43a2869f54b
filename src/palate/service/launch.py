"""`palate serve`: open the home, serve it from one process or several, stop together."""

import gc
import multiprocessing
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

from palate.config import DataConfig
from palate.errors import ConfigError
from palate.recommend import Recommender
from palate.service.contract import Running
from palate.service.home import Home
from palate.service.opening import open_system, prepare
from palate.service.server import ServerSettings, bind, serve
from palate.service.system import SystemConfig
from palate.service.trainer import RetrainPolicy, Trainer
from palate.store import Store
from palate.threads import keep_to_one_thread

Say = Callable[[str], None]


@dataclass(frozen=True)
class Launch:
    """A service to start."""

    home: Home
    store: str
    """URL of the store."""
    server: ServerSettings = field(default_factory=ServerSettings)
    system: SystemConfig = field(default_factory=SystemConfig)
    retrain: RetrainPolicy = field(default_factory=RetrainPolicy)
    """When it trains by itself; a training can be asked for in any case."""
    workers: int = 1
    """Processes that answer requests; more than one needs PostgreSQL."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; it must be at least 1")
        if self.workers > 1 and self.store.startswith("sqlite"):
            raise ConfigError(
                "workers: SQLite has one process that writes and remembers; for several name a PostgreSQL database "
                "with --store postgresql://…"
            )


def launch(
    what: Launch, model: Callable[[], Recommender], data: DataConfig | None = None, say: Say = lambda line: None
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        what: the service.
        model: gives the first model; called only where none is served yet.
        data: what to take in at the first start; None: as `opening.prepare` finds it.
        say: takes lines about the progress, the address and the first key.

    Raises:
        ConfigError, DataError, ModelError, StoreError: it cannot be started; what to do is in the message.
    """
    what.home.make()
    with what.home.locked(what.store):
        store = Store.open(what.store)
        try:
            secret = prepare(store, what.home, model, data, say)
        finally:
            store.close()
        if secret is not None:
            say(f"admin key, shown this once: {secret}")
        if what.workers == 1:
            _work(what, None, say)
        else:
            _supervise(what, say)


def _work(what: Launch, bound: socket.socket | None, say: Say) -> None:
    """Serve in this process."""
    keep_to_one_thread()

    @asynccontextmanager
    async def running() -> AsyncIterator[Running]:
        store = Store.open(what.store, create=False)
        trainer = Trainer(what.home.folder, what.store, what.retrain.canary)
        system = open_system(
            store, what.home, what.system, trainer=trainer, policy=what.retrain, shared=store.dialect != "sqlite"
        )
        system.start()
        keep_to_one_thread()  # once more: libraries came with the model
        # What was loaded stays: a full collection would go through all of it, 0.2 s with 50,000 items in which nothing
        # is answered.
        gc.collect()
        gc.freeze()
        try:
            yield system
        finally:
            await system.close()

    serve(running, what.server, bound=bound, started=lambda address: say(f"serving on {address}"))


def _supervise(what: Launch, say: Say) -> None:
    """Serve in several processes that share an address; one that dies is started again until all are to stop."""
    context = multiprocessing.get_context("spawn")
    with bind(replace(what.server, reuse_port=True)) as probe:  # fails here rather than in each, and settles port 0
        port = probe.getsockname()[1]
        settings = replace(what.server, port=port, reuse_port=True)
        stopping = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal stopping
            stopping = True
            for process in processes:
                process.terminate()

        def begin() -> multiprocessing.process.BaseProcess:
            process = context.Process(target=_worker, args=(replace(what, server=settings, workers=1),))
            process.start()
            return process

        processes = [begin() for _ in range(what.workers)]
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        say(f"serving on http://{settings.host}:{port} from {what.workers} processes")
        try:
            while any(process.is_alive() for process in processes):
                for place, process in enumerate(processes):
                    process.join(0.2)
                    if process.exitcode is not None and not stopping:
                        say(f"a process ended with code {process.exitcode}; another takes its place")
                        processes[place] = begin()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _worker(what: Launch) -> None:
    _work(what, None, print)
