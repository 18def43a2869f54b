"""What a command will write, probed before its first costly step: a model that cannot be saved is a model lost.

A probe leaves nothing behind: it makes no folder, and the file it writes has no name.
"""

import tempfile
from pathlib import Path

from palate.errors import ConfigError
from palate.recommend.model_folder import check_replaceable


def check_model_folder(folder: Path, option: str) -> None:
    """See that a model can be saved as a folder: a new one, an empty one, or one that holds a model.

    Raises:
        ConfigError: it is a file, or cannot be written.
        ModelError: it holds something else.
    """
    _check_folder(folder, option)
    check_replaceable(folder)
    # A model is written beside its folder and then takes its place, so that a folder is never half a model.
    _write_beside(folder.resolve(), option)


def check_report_folder(folder: Path | None, option: str) -> None:
    """See that results.json and report.html can be written into a folder; None is no report.

    Raises:
        ConfigError: it is a file, cannot be written, or holds folders of these names.
    """
    if folder is not None:
        check_files([folder / "results.json", folder / "report.html"], option)


def check_files(files: list[Path], option: str) -> None:
    """See that files can be written or replaced.

    Raises:
        ConfigError: one is a folder, its folder is a file, or it cannot be written.
    """
    for file in files:
        if file.is_dir():
            raise ConfigError(f"{option}: {file} is a folder and a file is to be written; remove it or name another")
        _check_folder(file.parent, option)
        _write_beside(file, option)


def check_folder(folder: Path | None, option: str) -> None:
    """See that files can be written into a folder, which may be there or not; None is none.

    Raises:
        ConfigError: it is a file, or cannot be written.
    """
    if folder is not None:
        check_files([folder / "probe"], option)


def _check_folder(folder: Path, option: str) -> None:
    """Refuse a folder that is a file, or that lies under one."""
    for place in (folder, *folder.parents):
        try:
            if place.exists() and not place.is_dir():
                raise ConfigError(f"{option}: {place} is a file and a folder is expected there; name another folder")
        except OSError as error:
            raise ConfigError(f"{option}: {place} cannot be read ({error.strerror}); name another folder") from None


def _write_beside(path: Path, option: str) -> None:
    """Write a file without a name into the nearest folder above that there is."""
    there = next(place for place in path.absolute().parents if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"probe")
    except OSError as error:
        raise ConfigError(
            f"{option}: {path} cannot be written ({there}: {error.strerror}); name another place or allow writing there"
        ) from None
