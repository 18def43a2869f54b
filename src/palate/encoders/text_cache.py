"""Vectors by the hash of their text, in a folder of files that are written once and never changed.

Adding ten texts to a hundred thousand writes ten rows, not a hundred thousand and ten: each call adds a file, and
takes into it the files that are no larger than what it writes, so that the number of files grows with the logarithm
of the number of texts (the log-structured merge of O'Neil et al., 1996, doi 10.1007/s002360050048).

A file appears complete or not at all, and is removed only once its rows are in another one. So a process that is
killed, or two that write at once, lose nothing; a row that two files hold counts once.
"""

import contextlib
import hashlib
import logging
import sys
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palate.data.files import write_atomically
from palate.encoders.text_models import first_line
from palate.errors import ConfigError

_logger = logging.getLogger(__name__)
_KEY_BYTES = 32
_READS = 20
"""Times that a folder is listed anew because a file vanished into a merged one while it was read."""


class VectorTable(NamedTuple):
    """Vectors and the keys of their texts."""

    rows: dict[bytes, int]
    """Key of a text (32 bytes) to its row in `vectors`."""
    vectors: Float32[Tensor, "text dim"]


def cache_folder(cache_dir: str | None, name: str) -> Path:
    """Make the folder `name` in `cache_dir`, or in ~/.cache/palate where that is None.

    Raises:
        ConfigError: it cannot be made.
    """
    root = Path.home() / ".cache" / "palate" if cache_dir is None else Path(cache_dir).expanduser()
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"text cache_dir {root} cannot be made ({error.strerror}); give a folder you can write"
        ) from error
    return root / name


def read_vectors(folder: Path) -> VectorTable | None:
    """Read all that a folder holds; None where that is nothing. A damaged file is logged, removed and left out.

    Raises:
        ConfigError: other processes change the folder faster than it can be read.
    """
    return _merge([table for _, table in _segments(folder)])


def add_vectors(folder: Path, new: VectorTable) -> None:
    """Add rows to a folder, which is made if need be.

    Raises:
        ConfigError: the folder cannot be written; what it held stays.
    """
    absorbed: list[Path] = []
    tables: list[VectorTable] = []
    size = len(new.rows)
    for num_rows, path in sorted((_num_rows(path), path) for path in folder.glob("*.safetensors")):
        if num_rows > size:
            break
        with contextlib.suppress(FileNotFoundError):  # another process has just merged it
            table = _read(path)
            if table is not None:
                tables.append(table)
                absorbed.append(path)
                size += num_rows
    merged = _merge([*tables, new])
    assert merged is not None
    keys = torch.frombuffer(bytearray(b"".join(merged.rows)), dtype=torch.uint8).view(-1, _KEY_BYTES)
    content = safetensors.torch.save(
        {"keys": keys, "vectors": merged.vectors}, {"checksum": _checksum(keys, merged.vectors)}
    )
    # Named by its content: whoever writes the same rows writes the same file.
    target = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"text cache {folder} cannot be made ({error.strerror}); give a cache_dir") from error
    write_cached(target, content)
    for path in absorbed:
        if path != target:
            path.unlink(missing_ok=True)


def write_cached(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader or a crash sees the old content or the new, never half of it.

    Raises:
        ConfigError: it cannot be written; nothing was changed.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise ConfigError(
            f"text cache {path} cannot be written ({error.strerror}); free some space or give a cache_dir"
        ) from error


def _segments(folder: Path) -> list[tuple[Path, VectorTable]]:
    """Every readable file with its rows, as they stood together at one moment."""
    for _ in range(_READS):
        found = []
        try:
            for path in sorted(folder.glob("*.safetensors")):
                table = _read(path)
                if table is not None:
                    found.append((path, table))
        except FileNotFoundError:  # merged into another file meanwhile: list again
            continue
        return found
    raise ConfigError(f"text cache {folder} changes faster than it can be read; give each process its own cache_dir")


def _num_rows(path: Path) -> int:
    """Rows of a file, from its header; more than any other where it cannot be read, so that it is left alone."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.get_slice("keys").get_shape()[0])
    except (SafetensorError, OSError):
        return sys.maxsize


def _read(path: Path) -> VectorTable | None:
    try:
        with safe_open(path, framework="pt") as file:
            keys, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
            if (file.metadata() or {}).get("checksum") != _checksum(keys, vectors):
                raise ValueError("its checksum does not match its content")
    except FileNotFoundError:
        raise
    except OSError as error:
        _logger.warning("text cache %s cannot be read (%s); encoding its texts again", path, error.strerror)
        return None
    except (SafetensorError, ValueError) as error:
        _logger.warning("text cache %s is damaged (%s); encoding its texts again", path, first_line(error))
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    packed = keys.numpy().tobytes()
    rows = {packed[_KEY_BYTES * row : _KEY_BYTES * (row + 1)]: row for row in range(len(vectors))}
    return VectorTable(rows, vectors)


def _merge(tables: list[VectorTable]) -> VectorTable | None:
    """The rows of the first table, then those of each further one that the earlier ones lack."""
    if len(tables) < 2:
        return tables[0] if tables else None
    rows: dict[bytes, int] = {}
    parts = []
    for table in tables:
        added = [key for key in table.rows if key not in rows]
        places = [table.rows[key] for key in added]
        parts.append(table.vectors if len(places) == len(table.vectors) else table.vectors[places])
        rows |= dict(zip(added, range(len(rows), len(rows) + len(added)), strict=True))
    return VectorTable(rows, torch.cat(parts))


def _checksum(keys: Tensor, vectors: Tensor) -> str:
    digest = hashlib.sha256(keys.numpy().data)
    digest.update(vectors.numpy().data)
    return digest.hexdigest()
