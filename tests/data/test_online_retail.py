"""The bundled data: complete, quick to load, honestly cleaned, and split without a leak."""

import time
from dataclasses import replace
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from palate.data import sources
from palate.data.cleaning import RAW_COLUMNS, Cleaned, clean_online_retail
from palate.data.dataset import Dataset
from palate.data.splitting import Split, default_cut, temporal_split
from palate.errors import DataError

CUT = datetime(2011, 9, 1)
# In the middle of a day with hundreds of new items, so that a rule which looks at whole days would show.
MIDDAY = datetime(2010, 12, 2, 12, 34)


@cache
def raw() -> pl.DataFrame:
    return sources.load_raw("online-retail")


@cache
def data() -> Dataset:
    return sources.load("online-retail")


@cache
def split() -> Split:
    return temporal_split(data(), CUT)


def test_every_published_row_is_there() -> None:
    # Figures of the published spreadsheet.
    assert raw().height == 541_909
    assert tuple(raw().columns) == RAW_COLUMNS
    assert raw()["Quantity"].sum() == 5_176_450
    assert raw()["UnitPrice"].sum() == pytest.approx(2_498_803.974)
    assert [raw()[name].n_unique() for name in ("InvoiceNo", "StockCode", "Country")] == [25_900, 4_070, 38]
    assert raw()["CustomerID"].null_count() == 135_080
    assert raw()["CustomerID"].drop_nulls().n_unique() == 4_372
    assert raw()["Description"].null_count() == 0
    assert raw().row(0)[:4] == ("536365", "85123A", "WHITE HANGING HEART T-LIGHT HOLDER", 6)
    assert raw().row(0)[4:] == (datetime(2010, 12, 1, 8, 26), 2.55, 17850, "United Kingdom")
    assert raw().row(-1)[:4] == ("581587", "22138", "BAKING SET 9 PIECE RETROSPOT ", 3)


def test_the_file_is_small_and_attributed() -> None:
    folder = resources.files("palate.data") / "resources"
    with resources.as_file(folder / "online_retail.parquet") as path:
        assert Path(path).stat().st_size < 2_500_000
    note = (folder / "ONLINE_RETAIL_ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(part in note for part in ("Daqing Chen", "10.24432/C5BW33", "Attribution 4.0", "Changes"))


def test_a_damaged_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(sources.BUNDLED["online-retail"], sha256="0" * 64)
    monkeypatch.setitem(sources.BUNDLED, "online-retail", broken)
    with pytest.raises(DataError, match=r"online_retail.parquet: the SHA-256 is .*install Palate again"):
        sources.load("online-retail")


def test_loading_is_quick_and_repeatable() -> None:
    start = time.perf_counter()
    again = sources.load("online-retail")
    assert time.perf_counter() - start < 6  # about one second; the slack is for a busy machine
    assert again.fingerprint() == data().fingerprint()


def test_cleaning_report_of_the_real_log() -> None:
    report = data().cleaning
    assert report is not None
    assert (report.rows_in, report.rows_out) == (541_909, data().interactions.height)
    assert {step.name: step.rows_dropped for step in report.steps if step.rows_dropped} == {
        "non_product_codes": 2_950,
        "missing_customer": 134_050,
        "not_a_sale": 33,
        "duplicate_lines": 5_222,
        "outlier_quantities": 4,
        "unmatched_cancellations": 1_053,
    }
    assert all(step.examples for step in report.steps if step.rows_dropped or step.rows_changed)
    assert dict(data().interactions["event_type"].value_counts().iter_rows()) == {
        "purchase": 391_146,
        "cancel": 7_451,
    }


def test_the_log_is_usable() -> None:
    log = data().interactions
    assert log["event_id"].n_unique() == log.height
    assert log["weight"].min() == 1.0
    assert log["weight"].max() == 4_800.0
    assert set(log["item_id"]) == set(data().items.frame["item_id"])
    assert set(log["user_id"]) == set(data().users.frame["user_id"])
    assert data().items.titles()["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"
    assert not data().items.frame["title"].str.contains(r"^\s|\s\s|\s$").any()


def test_no_cancellation_gives_back_what_was_not_bought() -> None:
    signed = pl.when(pl.col("event_type") == "cancel").then(-pl.col("weight")).otherwise("weight")
    left = data().interactions.select(signed.cum_sum().over("user_id", "item_id"))
    assert left.min().item() == 0.0


def test_sizes_of_the_split() -> None:
    sides = split()
    known = pl.col("item_id").is_in(list(sides.train_items)) & (pl.col("event_type") == "purchase")
    choices = sides.cold_user_events.filter(known).group_by("user_id").agg(pl.col("item_id").n_unique())
    assert (len(sides.train_users), len(sides.train_items), len(sides.cold_items)) == (3_313, 3_388, 270)
    assert choices.filter(pl.col("item_id") >= 25).height == 470


def test_training_ends_before_the_cut() -> None:
    sides = split()
    last, first = sides.train["timestamp"].max(), sides.cold_user_events["timestamp"].min()
    assert isinstance(last, datetime)
    assert isinstance(first, datetime)
    assert last < CUT <= first
    assert set(sides.cold_user_events["user_id"]).isdisjoint(sides.train["user_id"])
    assert set(sides.cold_items).isdisjoint(sides.train["item_id"])


def assert_same_past(cleaned: Cleaned, cut: datetime) -> None:
    """Training events, and what is said of their items and people, are as in the full log cut there."""
    full = temporal_split(data(), cut)
    assert_frame_equal(cleaned.interactions.filter(pl.col("timestamp") < cut), full.train)
    for ours, theirs, key, ids in (
        (cleaned.items.frame, data().items.frame, "item_id", full.train_items),
        (cleaned.users.frame, data().users.frame, "user_id", full.train_users),
    ):
        known = pl.col(key).is_in(list(ids))
        assert_frame_equal(ours.filter(known), theirs.filter(known))


@pytest.mark.parametrize("cut", [CUT, MIDDAY])
def test_deleting_the_future_changes_nothing_before_it(cut: datetime) -> None:
    cleaned = clean_online_retail(raw().filter(pl.col("InvoiceDate") < cut))
    assert cleaned.interactions.height == temporal_split(data(), cut).train.height
    assert_same_past(cleaned, cut)


def test_shuffling_the_future_changes_nothing_before_it() -> None:
    past = raw().filter(pl.col("InvoiceDate") < CUT)
    future = raw().filter(pl.col("InvoiceDate") >= CUT)
    scrambled = future.select(
        values.shuffle(seed=number) for number, values in enumerate(future.iter_columns())
    ).with_columns(pl.col("UnitPrice") * 100, pl.col("Description") + " (SOLD OUT)", pl.col("Quantity") * 50)
    cleaned = clean_online_retail(pl.concat([past, scrambled]))
    assert not cleaned.interactions.equals(data().interactions)
    assert_same_past(cleaned, CUT)


def test_default_cut_leaves_three_quarters_before() -> None:
    before = (data().interactions["timestamp"] < default_cut(data())).mean()
    assert isinstance(before, float)
    assert 0.749 < before <= 0.75
