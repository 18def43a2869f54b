"""Write docs/cli.md and docs/configuration.md from the program itself; `--check` fails where they are out of date."""

import ast
import inspect
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command

from palate.cli import app
from palate.config import Config
from palate.meta import LEARNERS

HERE = Path(__file__).parent


def command_line() -> str:
    """Every command with its options, from the help texts."""
    group: Any = get_command(app)
    parts = ["# Command line", "", "Written by `make docs` from the program's own help.", ""]
    commands: list[tuple[str, Any]] = []
    for name, command in group.commands.items():
        nested = getattr(command, "commands", None)
        commands += [(name, command)] if nested is None else [(f"{name} {n}", c) for n, c in nested.items()]
    for name, command in commands:
        parts += [f"## palate {name}", "", inspect.cleandoc(command.help or ""), "", "| option | meaning | default |"]
        parts += ["|---|---|---|"]
        for parameter in command.params:
            names = ", ".join(f"`{option}`" for option in parameter.opts) if parameter.opts else parameter.name
            default = "" if parameter.default in (None, False) or parameter.required else f"`{parameter.default}`"
            help_text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
            parts.append(f"| {names} | {help_text} | {'required' if parameter.required else default} |")
        parts.append("")
    return "\n".join(parts)


def configuration() -> str:
    """Every setting with its default and docstring, table by table."""
    parts = [
        "# Configuration",
        "",
        "Written by `make docs` from the settings' own docstrings. `palate config` prints an",
    ]
    parts += ["example file. A setting that is left out keeps its default.", ""]
    tables: list[tuple[str, Any]] = [("", Config())]
    while tables:
        prefix, table = tables.pop(0)
        notes = _docstrings(type(table))
        parts += [
            f"## [{prefix}]" if prefix else "## Top level",
            "",
            "| setting | default | meaning |",
            "|---|---|---|",
        ]
        for setting in fields(table):
            default = getattr(table, setting.name)
            if is_dataclass(default):
                tables.append((f"{prefix}.{setting.name}" if prefix else setting.name, default))
                continue
            parts.append(f"| `{setting.name}` | `{default!r}` | {notes.get(setting.name, '')} |")
        parts.append("")
    parts += [
        "# Settings of the learners",
        "",
        "`meta.learner` names one; its settings go under `[learner]`. The same names are keyword arguments of",
        "`palate.meta.build`.",
        "",
    ]
    for name, entry in LEARNERS.items():
        parts += [f"## {name}", "", "| setting | default | meaning |", "|---|---|---|"]
        notes = {key: note for part in reversed(entry.config.__mro__[:-1]) for key, note in _docstrings(part).items()}
        parts += [
            f"| `{setting.name}` | `{setting.default!r}` | {notes[setting.name]} |" for setting in fields(entry.config)
        ]
        parts.append("")
    return "\n".join(parts)


def _docstrings(table: type[Any]) -> dict[str, str]:
    """The string under each field of a dataclass, on one line."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(table))).body[0]
    assert isinstance(body, ast.ClassDef)
    notes: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            notes[statement.target.id] = " ".join(ast.literal_eval(following.value).split()).replace("|", "\\|")
    return notes


def main() -> None:
    """Write the pages, or compare them."""
    pages = {HERE / "cli.md": command_line(), HERE / "configuration.md": configuration()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        sys.exit(f"out of date: {', '.join(path.name for path in stale)}; run `make docs`" if stale else 0)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
