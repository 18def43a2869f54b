"""Whether a file holds some bytes, looked for by a process of its own.

NOTE: on POSIX, closing any descriptor of a file drops all locks that the process holds on it (SQLite, How To Corrupt An
SQLite Database File, section 2.2). A process that is connected to a SQLite database must therefore never open the
database's file, its `-wal` or its `-shm` but through the same SQLite library: other processes would take the database
for unused and delete the log that it still writes to. So this module is also a script that imports nothing of Palate
and opens no database.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_CHUNK: Final = 1 << 20
_ANSWERS: Final = {"found": True, "absent": False}


def holds(file: Path, needles: Sequence[bytes]) -> bool:
    """Return whether a file holds any of some byte strings; this process does not open it.

    Raises:
        OSError: the file cannot be read, or no process can be started.
    """
    # -I and -S: nothing but the standard library is read.
    command = [sys.executable, "-I", "-S", __file__, str(file)]
    lines = "\n".join(needle.hex() for needle in needles)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    answer = done.stdout.strip()
    if done.returncode != 0 or answer not in _ANSWERS:
        reasons = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OSError(f"{file}: cannot be searched ({reasons[-1]})")
    return _ANSWERS[answer]


def _search(file: str, needles: Sequence[bytes]) -> bool:
    overlap = max(map(len, needles), default=1) - 1
    tail = b""
    with open(file, "rb") as content:
        while chunk := content.read(_CHUNK):
            window = tail + chunk
            if any(needle in window for needle in needles):
                return True
            tail = window[-overlap:] if overlap else b""
    return False


if __name__ == "__main__":
    found = _search(sys.argv[1], [bytes.fromhex(line) for line in sys.stdin.read().split()])
    print("found" if found else "absent")
