"""Telling what a long run is doing: silent in the library, lines and bars in the command line."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Stage(NamedTuple):
    """One finished stage of a run."""

    name: str
    seconds: float
    detail: str


Step = Callable[[int, int, str], None]
"""step(done, of, note): moves the bar of the current stage."""


class StageHandle:
    """What a running stage is told: how far it is, and in the end what it did."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.detail = ""

    def done(self, detail: str) -> None:
        """Say in one line what the stage did."""
        self.detail = detail


@dataclass
class Reporter:
    """Collects the stages of a run; with a console it also shows them."""

    console: Console | None = None
    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageHandle]:
        """Time a stage; a bar appears once its first step is reported and goes when it ends."""
        start = time.perf_counter()
        if self.console is None or not self.console.is_terminal:
            handle = StageHandle(lambda done, of, note: None)
            yield handle
        else:
            columns = (
                TextColumn("  {task.description:<20}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self.console, transient=True) as bars:
                task = bars.add_task(name, total=None, note="")
                handle = StageHandle(lambda done, of, note: bars.update(task, completed=done, total=of, note=note))
                yield handle
        seconds = time.perf_counter() - start
        self.stages.append(Stage(name, seconds, handle.detail))
        if self.console is not None:
            self.console.print(f"[bold]{name:<20}[/] {seconds:6.1f} s  {handle.detail}", highlight=False)
