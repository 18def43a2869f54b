"""A file is replaced whole or stays as it was."""

import os
from pathlib import Path

import pytest

from palate.data.files import write_atomically


def test_content_is_written_and_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    write_atomically(path, b"one")

    def fail(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync", fail), "rename": (Path, "replace", fail)}[call])
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"two")
    monkeypatch.undo()
    assert path.read_bytes() == b"one"
    assert [found.name for found in tmp_path.iterdir()] == ["file.bin"]
