"""Training beside serving: a process of its own, of low priority, that ends with the service."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from palate.errors import ConfigError, ModelError


@dataclass(frozen=True)
class RetrainPolicy:
    """When a service trains by itself. Each is off at 0; whichever comes first begins a training."""

    events: int = 0
    """New events since the last training."""
    hours: float = 0.0
    """Hours since the last training."""
    drift: float = 0.0
    """Population stability index of what people choose now against before; 0.2 is a usual bound for a real change."""
    check_seconds: float = 60.0
    """How often this is looked at."""
    canary: float = 0.0
    """Share of the people whom a model that passed the gate serves at first; 0: everyone at once."""

    def __post_init__(self) -> None:
        for name in ("events", "hours", "drift"):
            if getattr(self, name) < 0:
                raise ConfigError(f"retrain.{name} is {getattr(self, name)}; it must be at least 0")
        if not self.check_seconds > 0:
            raise ConfigError(f"retrain.check_seconds is {self.check_seconds}; it must be above 0")
        if not 0 <= self.canary < 1:
            raise ConfigError(f"retrain.canary is {self.canary}; it must be from 0 to below 1")


@dataclass
class Trainer:
    """Runs `palate retrain` for a home; at most one at a time is asked for by the service."""

    home: Path
    store: str
    canary: float = 0.0
    _process: "subprocess.Popen[str] | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(self) -> None:
        """Train to the end; blocks.

        Raises:
            ModelError: it failed; the message is the training's own.
        """
        command = [sys.executable, "-m", "palate", "retrain", "--home", str(self.home), "--canary", str(self.canary)]
        with self._lock:
            if self._stopped:
                raise ModelError("the service stops")
            # The URL of a store may hold a password, which arguments would show to everyone on the machine.
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "PALATE_STORE": self.store, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=_step_back,
            )
        _, said = self._process.communicate()
        if self._process.returncode != 0:
            lines = said.strip().splitlines() or [f"the training ended with code {self._process.returncode}"]
            raise ModelError(lines[-1].removeprefix("palate: "))

    def stop(self) -> None:
        """End a training that is at work; the next one goes on from its last checkpoint."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()


def _step_back() -> None:
    os.nice(15)
