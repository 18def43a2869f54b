"""Random sequences of all that processes of a home do; `soak/everything.py` runs many more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import palate

ROOT = Path(__file__).parents[2]


def run(model: Path, *options: str) -> str:
    """Run the soak in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "soak" / "everything.py"), "--model", str(model), *options],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(palate.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stdout


def test_nothing_acknowledged_is_lost_on_sqlite(saved_model: Path) -> None:
    said = run(saved_model, "--sqlite", "20", "--postgres", "0")
    assert "SQLite: 20 sequences, none at fault" in said
    for what in ("power cuts", "helpers killed", "erased ids looked for", "restart_roughly"):
        assert what in said  # else nothing was put to the test


def test_nothing_acknowledged_is_lost_on_postgres(saved_model: Path, postgres_url: str) -> None:
    said = run(saved_model, "--sqlite", "0", "--postgres", "5", "--url", postgres_url)
    assert "PostgreSQL: 5 sequences, none at fault" in said


def test_the_ledger_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "soak"))
    from ledger import Ledger

    ledger = Ledger([("old", "ann"), ("other", "bob")])
    ledger.send(["acknowledged", "unsure"], ["ann", "ann"])
    ledger.settle(["acknowledged"], True)
    ledger.settle(["unsure"], False)
    before = ledger.now()
    erasure = ledger.erase("ann")

    def check(*found: str, since: float | None = None) -> None:
        now = ledger.now()
        ledger.check(found, now if since is None else since, now if since is None else since, "here")

    for found in (("old", "other", "acknowledged"), ("old", "other", "acknowledged", "unsure")):
        check(*found, since=before)
    check("other")  # the erasure may have happened
    check("old", "other", "acknowledged")  # or not
    for found, reason in (
        (("old", "other"), "1 of 3 acknowledged events missing"),
        (("old", "other", "acknowledged", "old"), "1 events twice"),
        (("old", "other", "acknowledged", "nobody's"), "nobody sent"),
    ):
        with pytest.raises(AssertionError, match=reason):
            check(*found, since=before)
    with pytest.raises(AssertionError, match="1 of 2 are left"):
        ledger.resolve(["other", "old"], "here")
    erasure.end = ledger.now()
    assert ledger.gone() == ["ann"]
    check("other")
    with pytest.raises(AssertionError, match="1 events that were erased"):
        check("other", "old")
    ledger.send(["back"], ["ann"])
    ledger.settle(["back"], True)
    check("other", "back")
    with pytest.raises(AssertionError, match="1 of 2 acknowledged events missing"):
        check("other")
    with pytest.raises(AssertionError, match="1 events that were erased or sent later"):
        check("other", "back", since=erasure.end)
    assert ledger.gone() == []


def test_a_record_cut_short_is_read_as_far_as_it_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a kill leaves of a step is passed over, wherever it was cut and whatever other processes noted after it."""
    monkeypatch.syspath_prepend(str(ROOT / "soak"))
    import crash_vfs

    file = tmp_path / "steps"
    disk = crash_vfs.RecordingDisk("cut-short", file)
    steps = [crash_vfs.Step("write", "a", number, bytes([number]) * 9) for number in range(3)]
    for step in steps:
        disk.add(step)
    whole = file.read_bytes()
    assert crash_vfs.read_record(file) == steps
    one = len(whole) // 3
    for cut in range(one):
        file.write_bytes(whole[:one] + whole[one : one + cut] + whole[2 * one :])
        assert crash_vfs.read_record(file) == [steps[0], steps[2]]
