"""Files of a SQLite store, looked at from outside: what may open them, who holds locks, what is in them.

NOTE: a process that is connected to a store loses its locks when it closes any other descriptor of the store's files,
a test's own too. So bytes are looked for by another program, and locks are read from /proc.
"""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import palate

_SOURCES = str(Path(palate.__file__).parent)
_ENDINGS = (".db", ".db-wal", ".db-shm", ".db-journal")


class OpenedError(BaseException):
    """Code of Palate opened a file of a store by itself; no handler of errors may take it for another."""


def watch() -> None:
    """Fail from now on where code of Palate opens a file of a SQLite store other than through SQLite."""
    sys.addaudithook(_look)


def _look(event: str, arguments: tuple[object, ...]) -> None:
    # What SQLite opens itself is no event of this name; what Python opens by any function is.
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        name = os.fsdecode(arguments[0])
        if name.endswith(_ENDINGS) and any(one.filename.startswith(_SOURCES) for one in traceback.extract_stack()):
            raise OpenedError(f"{name}: a file of a store, opened by Palate and not by SQLite")


def faults(process: int, database: Path) -> list[str]:
    """What is wrong with the files that a process has connections to: locks that it lost, files that are gone."""
    wrong = []
    held = {line.split()[5].split(":")[-1] for line in _locks() if line.split()[4] == str(process)}
    for ending in ("", "-shm"):
        file = Path(f"{database}{ending}")
        if not file.exists():
            wrong.append(f"{file.name} is not there")
        elif str(file.stat().st_ino) not in held:
            wrong.append(f"no lock on {file.name}")
    folder = Path(f"/proc/{process}/fd")
    for descriptor in folder.iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith(str(database)) and target.endswith("(deleted)"):
            wrong.append(f"works on {Path(target).name}")
    return wrong


def _locks() -> list[str]:
    # Lines of those who wait for a lock have an arrow in them, and hold none.
    return [line for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]


def files_that_hold(folder: Path, needle: str) -> list[str]:
    """Names of the files below a folder that hold some text."""
    command = ["grep", "--recursive", "--files-with-matches", "--text", "--fixed-strings", "--", needle, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return sorted(line.removeprefix("./") for line in done.stdout.splitlines())
