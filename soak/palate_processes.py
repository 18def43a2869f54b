"""Palate's commands as real processes that start at once: they fork from one that has imported everything.

A process may run over a disk that takes notes (crash_vfs.py), so that a power cut under all of them can be simulated.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# The server that processes fork from finds modules by this alone.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["palate_preloaded"])
_PATIENCE = 60.0
_DISKS: list[object] = []
"""Kept for as long as the process: SQLite knows them by name only."""


class Process:
    """A process whose words go to a file."""

    def __init__(self, target: Any, output: Path, disk: Path | None) -> None:
        self.output = output
        self._process = CONTEXT.Process(target=_run, args=(target, output, disk))
        self._process.start()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.is_alive()

    def said(self) -> str:
        """What it has said so far."""
        return self.output.read_text() if self.output.exists() else ""

    def send(self, number: int) -> None:
        """Send a signal."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def wait(self, seconds: float = _PATIENCE) -> int:
        """Wait for its end and return the exit code, below 0 the number of a signal.

        Raises:
            AssertionError: it does not end.
        """
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"still at work after {seconds:g} s: {self.said()[-2000:]}")
        return code

    def kill(self) -> None:
        """End it without warning."""
        self.send(signal.SIGKILL)
        self._process.join()


def command(arguments: Sequence[str], output: Path, *, disk: Path | None = None, store: str | None = None) -> Process:
    """Begin a command of the command line."""
    return Process(partial(_command, tuple(arguments), {} if store is None else {"PALATE_STORE": store}), output, disk)


def serve(home: Path, store: str, output: Path, *, disk: Path | None = None) -> Process:
    """Begin a service that does its background work many times as often as usual."""
    return Process(partial(_serve, home, store), output, disk)


def address(service: Process) -> str | None:
    """Wait until a service answers and return its address; None: it has ended instead."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        for line in service.said().splitlines():
            if line.startswith("serving on "):
                return line.split()[2]
        if not service.alive:
            return None
        time.sleep(0.005)
    raise AssertionError(f"the service did not start: {service.said()[-2000:]}")


def _run(target: Any, output: Path, disk: Path | None) -> None:
    import torch

    handle = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    if disk is not None:
        _use(disk)
    target()


def _command(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    from palate.cli import app

    os.environ.update(environment)
    app(arguments, prog_name="palate")


def _serve(folder: Path, store: str) -> None:
    from palate.errors import PalateError
    from palate.service.home import Home
    from palate.service.launch import Launch, launch
    from palate.service.server import ServerSettings
    from palate.service.system import SystemConfig
    from palate.service.trends import TrendConfig

    busy = SystemConfig(
        states_seconds=0.2,
        freshen_seconds=0.4,
        watch_seconds=0.1,
        judge_seconds=0.5,
        trends=TrendConfig(seconds=0.3),
    )
    try:
        launch(Launch(Home(folder), store, ServerSettings(port=0), busy), _no_model, say=_say)
    except PalateError as error:
        _say(f"palate: {error}")
        sys.exit(2)


def _no_model() -> Any:
    raise AssertionError("the home has a model")


def _say(line: str) -> None:
    print(line, flush=True)


def _use(disk: Path) -> None:
    """Open every store of this process over a disk that notes its steps in a file."""
    import crash_vfs

    from palate.store import store

    recording = crash_vfs.RecordingDisk(f"disk-{os.getpid()}", disk)
    usual = store.make_engine
    # Few pages between checkpoints, so that cuts fall into many of them.
    driver = crash_vfs.ApswDriver(recording.name, ["PRAGMA wal_autocheckpoint = 50"])
    store.make_engine = partial(usual, module=driver)  # type: ignore[assignment]
    _DISKS.append(recording)
