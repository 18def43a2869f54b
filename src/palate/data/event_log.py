"""Everyone's events as flat columns: the layout that large trainings read, in memory or straight from the disk.

One entry an event, people after people, each person's events from the oldest to the newest. `offsets` says where each
person begins. A billion events take 4 GB of items; opened from a folder, only the pages that are touched are read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, Int64, UInt

from palate.data.episodes import History
from palate.errors import DataError

_FORMAT = "palate-events-1"
_COLUMNS: Mapping[str, str] = {"items": "<i4", "seconds": "<f8", "kinds": "|u1", "values": "<f4", "sessions": "<i4"}
_OPTIONAL = tuple(_COLUMNS)[1:]


@dataclass(frozen=True, eq=False)
class EventLog:
    """Sequences of many people; the optional columns are None where the source does not have them.

    The columns are not read here, so that opening a large log is free.

    Raises:
        DataError: columns of different lengths, or offsets that do not fit.
    """

    items: Int32[np.ndarray, "event"]
    """Vocabulary index of the item of each event."""
    offsets: Int64[np.ndarray, "user_and_one"]
    """Person u has the events offsets[u] to offsets[u + 1]."""
    seconds: Float64[np.ndarray, "_"] | None = None
    """Time of each event, in seconds since 1970-01-01."""
    kinds: UInt[np.ndarray, "_"] | None = None
    """Class of each event, such as view or purchase; what the numbers mean is the source's. A file has one byte."""
    values: Float[np.ndarray, "_"] | None = None
    """Rating or weight of each event; NaN: it has none. A file has single precision."""
    profiles: Float32[np.ndarray, "_ profile"] | None = None
    """What is known of each person, a row each."""
    sessions: Int32[np.ndarray, "_"] | None = None
    """Events with the same number are of one session; -1: nobody says."""

    def __post_init__(self) -> None:
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.items):
            raise DataError(
                f"events: offsets run from {self.offsets[:1]} to {self.offsets[-1:]}; expected 0 to {len(self.items):,}"
            )
        if (np.diff(self.offsets) < 0).any():
            person = int((np.diff(self.offsets) < 0).argmax())
            raise DataError(f"events: person {person} ends before they begin; offsets must not fall")
        for name in _OPTIONAL:
            column = getattr(self, name)
            if column is not None and len(column) != len(self.items):
                raise DataError(f"events: {len(column):,} {name} for {len(self.items):,} items; give one an event")
        if self.profiles is not None and len(self.profiles) != self.num_users:
            raise DataError(f"events: {len(self.profiles):,} profiles for {self.num_users:,} people; give one a person")

    @property
    def num_users(self) -> int:
        """People, those without events included."""
        return len(self.offsets) - 1

    @property
    def times(self) -> Float64[np.ndarray, "event"]:
        """`seconds`, for who cannot do without; DataError: the log has none."""
        if self.seconds is None:
            raise DataError("events: they have no times; give each one")
        return self.seconds

    def __len__(self) -> int:
        return len(self.items)

    def lengths(self) -> Int64[np.ndarray, "user"]:
        """Events of each person."""
        return np.diff(self.offsets)

    def take(self, users: Sequence[int] | Int64[np.ndarray, "chosen"]) -> "EventLog":
        """The events of some people, in the order asked for."""
        chosen = np.asarray(users, np.int64)
        profiles = None if self.profiles is None else self.profiles[chosen]
        return self._gather(self.offsets[chosen], self.offsets[chosen + 1], profiles)

    def cut(self, drop: int | Int64[np.ndarray, "user"]) -> "EventLog":
        """Everyone without their last `drop` events; who has fewer has none left; DataError for a negative number."""
        if np.min(drop, initial=0) < 0:
            raise DataError(f"events: to drop {np.min(drop)} events of a person; expected at least 0")
        starts = self.offsets[:-1]
        return self._gather(starts, np.maximum(self.offsets[1:] - drop, starts), self.profiles)

    def recent(self, length: int) -> "EventLog":
        """Everyone's `length` most recent events; DataError for a negative number."""
        if length < 0:
            raise DataError(f"events: the {length} most recent of a person; expected at least 0")
        stops = self.offsets[1:]
        return self._gather(np.maximum(stops - length, self.offsets[:-1]), stops, self.profiles)

    def _gather(
        self,
        starts: Int64[np.ndarray, "row"],
        stops: Int64[np.ndarray, "row"],
        profiles: Float32[np.ndarray, "row profile"] | None,
    ) -> "EventLog":
        lengths = stops - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # Places of all kept events: each row's start, repeated, plus a count that starts anew in each row.
        places = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])

        def pick(column: Any) -> Any:
            return None if column is None else column[places]

        columns = {name: pick(getattr(self, name)) for name in _OPTIONAL}
        return EventLog(np.asarray(self.items[places]), offsets, profiles=profiles, **columns)


def from_sequences(sequences: Iterable[Sequence[int] | Int64[np.ndarray, "_"]]) -> EventLog:
    """Build a log without times from each person's items."""
    rows = [np.asarray(row, np.int32) for row in sequences]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return EventLog(np.concatenate([np.zeros(0, np.int32), *rows]), offsets)


def from_histories(histories: Iterable[History], *, rated: bool = False) -> EventLog:
    """Build a log from histories of distinct items, with their times; with `rated` their ratings too, NaN for none."""
    rows = list(histories)
    offsets = np.concatenate([[0], np.cumsum([len(row.items) for row in rows])]).astype(np.int64)
    items = np.concatenate([np.zeros(0, np.int64), *(row.items for row in rows)]).astype(np.int32)
    values = None
    if rated:
        given = [np.full(len(row.items), np.nan) if row.ratings is None else row.ratings for row in rows]
        values = np.concatenate([np.zeros(0), *given]).astype(np.float32)
    return EventLog(items, offsets, np.concatenate([np.zeros(0), *(row.times for row in rows)]), values=values)


def join_logs(logs: Sequence[EventLog]) -> EventLog:
    """The people of all logs, log after log; columns that not all of them have are left out."""
    first = np.cumsum([0, *(len(log) for log in logs)])
    offsets = [log.offsets[1:] + start for log, start in zip(logs, first, strict=False)]
    joined = EventLog(
        np.concatenate([np.zeros(0, np.int32), *(log.items for log in logs)]),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
    )
    for name in (*_COLUMNS, "profiles"):
        columns = [getattr(log, name) for log in logs]
        if logs and all(column is not None for column in columns):
            joined = replace(joined, **{name: np.concatenate(columns)})
    return joined


def write_events(log: EventLog, folder: str | Path) -> None:
    """Write a log as one raw file a column and a page that names them; the page comes last and makes it valid.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events.json").unlink(missing_ok=True)
        log.offsets.astype("<i8").tofile(folder / "offsets.bin")
        present = [name for name in _COLUMNS if getattr(log, name) is not None]
        for name in present:
            getattr(log, name).astype(_COLUMNS[name]).tofile(folder / f"{name}.bin")
        width = None
        if log.profiles is not None:
            width = log.profiles.shape[1]
            log.profiles.astype("<f4").tofile(folder / "profiles.bin")
        page = {
            "format": _FORMAT,
            "num_events": len(log),
            "num_users": log.num_users,
            "columns": present,
            "profile_features": width,
        }
        temporary = folder / "events.json.tmp"
        temporary.write_text(json.dumps(page, indent=1), encoding="utf-8")
        temporary.replace(folder / "events.json")
    except OSError as error:
        raise DataError(
            f"{folder}: the events cannot be written ({error.strerror}); free space or choose another"
        ) from None


def open_events(folder: str | Path) -> EventLog:
    """Open a written log without reading it: columns are mapped into memory, read-only.

    Raises:
        DataError: the folder holds no complete log, or a file has another size than its page says.
    """
    folder = Path(folder)
    try:
        page = json.loads((folder / "events.json").read_text(encoding="utf-8"))
        if page["format"] != _FORMAT:
            raise DataError(f"{folder}: format {page['format']!r}; this version reads {_FORMAT!r}; write it again")
        sizes = {"offsets": page["num_users"] + 1} | dict.fromkeys(page["columns"], page["num_events"])
        width = page["profile_features"]
        if width is not None:
            sizes["profiles"] = page["num_users"] * width
        columns = {}
        for name, size in sizes.items():
            kind = np.dtype({**_COLUMNS, "offsets": "<i8", "profiles": "<f4"}[name])
            path = folder / f"{name}.bin"
            if path.stat().st_size != size * kind.itemsize:
                raise DataError(
                    f"{path}: {path.stat().st_size:,} bytes, expected {size * kind.itemsize:,}; write the log again"
                )
            # An empty file cannot be mapped.
            columns[name] = np.memmap(path, kind, "r") if size else np.zeros(0, kind)
        if width is not None:
            columns["profiles"] = columns["profiles"].reshape(page["num_users"], width)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{folder}: no complete event log ({reason}); write it with write_events") from None
    return EventLog(**columns)
