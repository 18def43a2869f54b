from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from palate.data.episodes import History
from palate.data.event_log import EventLog, from_histories, from_sequences, join_logs, open_events, write_events
from palate.errors import DataError

SEQUENCES = [[3, 1, 2], [], [5, 5], [0]]


def as_lists(log: EventLog) -> list[list[int]]:
    return [log.items[a:b].tolist() for a, b in zip(log.offsets[:-1], log.offsets[1:], strict=True)]


def timed() -> EventLog:
    log = from_sequences(SEQUENCES)
    times = np.arange(len(log)) * 10.0
    profiles = np.arange(8, dtype=np.float32).reshape(4, 2)
    kinds = np.arange(len(log)).astype(np.uint8)
    return EventLog(log.items, log.offsets, times, kinds, times.astype(np.float32), profiles)


def test_sequences_come_back() -> None:
    assert as_lists(from_sequences(SEQUENCES)) == SEQUENCES
    assert from_sequences(SEQUENCES).lengths().tolist() == [3, 0, 2, 1]
    assert as_lists(from_sequences([])) == []


def test_take_cut_and_recent_keep_columns_in_step() -> None:
    log = timed()
    for part in (log.take([2, 0, 2]), log.cut(1), log.recent(2), log.cut(np.array([0, 1, 2, 0]))):
        assert part.seconds is not None
        assert part.kinds is not None
        assert part.values is not None
        np.testing.assert_array_equal(part.seconds, part.values)
        np.testing.assert_array_equal(part.seconds, part.kinds * 10.0)
        np.testing.assert_array_equal(part.items, log.items[part.kinds])
    taken = log.take([2, 0, 2]).profiles
    assert taken is not None
    assert taken[:, 0].tolist() == [4, 0, 4]
    assert np.array_equal(log.cut(1).profiles, log.profiles)  # type: ignore[arg-type]
    assert as_lists(log.take([2, 0, 2])) == [[5, 5], [3, 1, 2], [5, 5]]
    assert as_lists(log.cut(1)) == [[3, 1], [], [5], []]
    assert as_lists(log.cut(np.array([0, 1, 2, 0]))) == [[3, 1, 2], [], [], [0]]
    assert as_lists(log.recent(2)) == [[1, 2], [], [5, 5], [0]]
    for refused in (lambda: log.cut(-1), lambda: log.cut(np.array([0, -2, 0, 0])), lambda: log.recent(-1)):
        with pytest.raises(DataError, match="expected at least 0"):
            refused()


def test_histories_keep_their_times() -> None:
    rows = [History(np.array([4, 2]), np.array([1.5, 2.5]), np.array([7]))]
    log = from_histories(rows)
    assert as_lists(log) == [[4, 2]]
    assert log.seconds is not None
    assert log.seconds.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    "log", [timed(), from_sequences(SEQUENCES), from_sequences([])], ids=["timed", "bare", "empty"]
)
def test_a_folder_gives_back_what_was_written(log: EventLog, tmp_path: Path) -> None:
    write_events(log, tmp_path / "log")
    read = open_events(tmp_path / "log")
    assert as_lists(read) == as_lists(log)
    for name in ("seconds", "kinds", "values", "profiles"):
        wanted, found = getattr(log, name), getattr(read, name)
        assert (wanted is None) == (found is None)
        if wanted is not None:
            np.testing.assert_array_equal(found, wanted)
    if len(log):
        assert isinstance(read.items, np.memmap)


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete event log"):
        open_events(tmp_path)
    write_events(timed(), tmp_path)
    (tmp_path / "seconds.bin").write_bytes(b"123")
    with pytest.raises(DataError, match=r"seconds\.bin: 3 bytes, expected 48"):
        open_events(tmp_path)


def test_columns_that_do_not_fit_are_refused() -> None:
    items = np.zeros(3, np.int32)
    with pytest.raises(DataError, match="offsets run from"):
        EventLog(items, np.array([0, 2]))
    with pytest.raises(DataError, match="person 1 ends before"):
        EventLog(items, np.array([0, 2, 1, 3]))
    with pytest.raises(DataError, match="2 seconds for 3 items"):
        EventLog(items, np.array([0, 3]), np.zeros(2))
    with pytest.raises(DataError, match="3 profiles for 1 people"):
        EventLog(items, np.array([0, 3]), profiles=np.zeros((3, 2), np.float32))


def test_logs_are_joined_person_after_person() -> None:
    one, other = from_sequences([[1, 2], []]), from_sequences([[3], [4, 5]])
    joined = join_logs([one, other])
    assert [joined.take([user]).items.tolist() for user in range(joined.num_users)] == [[1, 2], [], [3], [4, 5]]
    timed = [replace(log, seconds=np.arange(len(log), dtype=np.float64)) for log in (one, other)]
    seconds = join_logs(timed).seconds
    assert seconds is not None
    assert seconds.tolist() == [0, 1, 0, 1, 2]
    assert join_logs([timed[0], other]).seconds is None, "a column that one of them lacks is left out"
    assert join_logs([]).num_users == 0
