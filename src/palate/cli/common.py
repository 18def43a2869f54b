"""What all commands share: the application, how one is registered, options, and which model is meant."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from palate.errors import ModelError, PalateError
from palate.recommend import Recommender

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Palate: recommendations that fit a person after a handful of events.\n\n"
    "Start with [bold]palate demo[/], then [bold]palate recommend --user 12748[/].",
)
bench = typer.Typer(no_args_is_help=True, help="Measure Palate on public protocols.")
app.add_typer(bench, name="bench")
Arguments = ParamSpec("Arguments")
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout and nothing else.")]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Model folder. Default: the one that was trained last.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that train side by side. Default: one a core.")
]


def home() -> Path:
    """Where models go by default: $PALATE_HOME, or ~/.palate."""
    return Path(os.environ.get("PALATE_HOME") or Path.home() / ".palate")


def find_model(folder: Path | None) -> Recommender:
    """Load the named model, or the one that was trained last."""
    if folder is None:
        pointer = home() / "current"
        if not pointer.exists():
            raise ModelError(f"{pointer}: no model has been trained yet; run `palate demo`, or pass --model FOLDER")
        folder = Path(pointer.read_text(encoding="utf-8").strip())
    return Recommender.load(folder)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what Palate raises on purpose into one line on stderr and exit code 2."""
    try:
        yield
    except PalateError as error:
        print(f"palate: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from None


def command(name: str, group: typer.Typer = app) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Register a command with the common handling of errors."""

    def register(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
        @wraps(function)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            with one_line_errors():
                function(*args, **kwargs)

        group.command(name)(run)
        return run

    return register


def main() -> None:
    """Entry point of the `palate` script."""
    app(prog_name="palate")
