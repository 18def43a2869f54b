"""Reading files, and the one line that each broken file gets."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from palate.data.log import INTERACTION_SCHEMA
from palate.data.sources import load, read_csv, read_events, read_parquet
from palate.errors import DataError

NOW = datetime(2020, 1, 1)
EVENTS = "user_id,item_id,timestamp\n007,a,2011-01-02\n8,b,2011-01-01\n"
ITEMS = 'item_id,title,price,zip,colour\na,"Lamp, red",2.5,01234,red\nb,,,99999,\nc,Chair,1e1,5,\n'

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return put


def test_csv_with_items_and_users(write: Write) -> None:
    users = write("users.csv", "user_id,age\n8,41\n")
    data = read_csv(write("shop.csv", EVENTS), write("items.csv", ITEMS), users, now=NOW)
    assert data.name == "shop"
    assert data.interactions.select("user_id", "item_id").rows() == [("8", "b"), ("007", "a")]
    assert (data.items.text, data.items.numeric, data.items.categorical) == (
        "title",
        ("price",),
        ("zip", "colour"),
    )
    assert data.items.frame["price"].to_list() == [2.5, None, 10.0]
    assert data.items.titles() == {"a": "Lamp, red", "b": "b", "c": "Chair"}
    assert data.users.frame.rows() == [("8", 41.0), ("007", None)]
    assert data.cleaning is None


def test_csv_of_events_alone(write: Write) -> None:
    data = read_csv(write("shop.csv", "\ufeff" + EVENTS.replace("\n", "\r\n") + "\r\n\r\n"), name="mine", now=NOW)
    assert data.name == "mine"
    assert data.items.frame.rows() == [("a",), ("b",)]
    assert data.users.frame.rows() == [("007",), ("8",)]


def test_columns_are_renamed_in_every_file(write: Write) -> None:
    data = read_csv(
        write("shop.csv", EVENTS.replace("item_id", "sku").replace("user_id", "who")),
        write("items.csv", ITEMS.replace("item_id", "sku")),
        columns={"sku": "item_id", "who": "user_id"},
        now=NOW,
    )
    assert data.interactions.height == 2


def test_parquet_equals_csv(write: Write, tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "user_id": ["007", "8"],
            "item_id": ["a", "b"],
            "timestamp": [datetime(2011, 1, 2), datetime(2011, 1, 1)],
        }
    )
    frame.write_parquet(tmp_path / "shop.parquet")
    parquet = read_parquet(tmp_path / "shop.parquet", now=NOW)
    assert parquet.fingerprint() == read_csv(write("shop.csv", EVENTS), now=NOW).fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("user_id,item_id,timestamp\n", "the table has no rows"),
        (
            EVENTS + "9,c,2011-01-01,x\n",
            "row 3 (data row, header not counted) has 4 fields; the header has 3",
        ),
        (
            EVENTS + "9,c\n8,a,2011-01-01\n",
            "row 3 (data row, header not counted) has 2 fields; the header has 3",
        ),
        ("user_id;item_id;timestamp\n1;2;3\n", 'no column "user_id"; found: user_id;item_id;timestamp'),
        ("item_id,user_id,item_id,timestamp\na,b,c,4\n", "column 'item_id' occurs twice in the header"),
        (
            EVENTS.replace("8,b", "8,"),
            'row 2 (data row, header not counted), column "item_id": the value is missing',
        ),
        (
            EVENTS.replace("\n8", "\n\n8"),
            'row 2 (data row, header not counted), column "user_id": the value is missing',
        ),
        (EVENTS + '"9,c,2011-01-01\n', "row 3 (data row, header not counted) has 1 fields; the header has 3"),
        (EVENTS + "9,c,2031-01-01\n", 'row 3 (data row, header not counted), column "timestamp": 2031-01-01'),
    ],
)
def test_a_broken_csv_is_one_line(write: Write, text: str, message: str) -> None:
    path = write("log.csv", text)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_csv(path, now=NOW)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"user_id,item_id,timestamp\n\xff\xfe,b,3\n")
    with pytest.raises(DataError, match=r"log\.csv: line 2 is not UTF-8 .*; save the file as UTF-8"):
        read_csv(path)


def test_paths_that_are_no_tables(tmp_path: Path, write: Write) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv: there is no such file"):
        read_csv(tmp_path / "nothing.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: cannot be read"):
        read_csv(tmp_path / "folder.csv")
    with pytest.raises(DataError, match=r"the ending is '\.txt'; expected a \.csv file"):
        read_csv(write("log.txt", EVENTS))
    with pytest.raises(DataError, match=r"the ending is '\.csv'; expected a \.parquet file"):
        read_parquet(write("log.csv", EVENTS))
    with pytest.raises(DataError, match=r"log\.parquet: not readable as Parquet"):
        read_parquet(write("log.parquet", EVENTS))
    with pytest.raises(DataError, match=r"unknown ending '\.json'; expected one of \.csv, \.parquet"):
        read_events(write("log.json", EVENTS))


def test_unknown_items_are_counted_and_the_first_is_named(write: Write) -> None:
    events = write("log.csv", EVENTS + "1,zebra,2010-01-01\n1,yak,2009-01-01\n")
    with pytest.raises(DataError) as caught:
        read_csv(events, write("items.csv", ITEMS), now=NOW)
    assert f"{events}: row 3 (data row, header not counted), column \"item_id\": 'zebra' is not" in str(caught.value)
    assert "(2 rows name an unknown item)" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sku": "item_id"}, "there is no column 'sku' to rename"),
        ({"user_id": "item_id"}, "renames 'user_id' to 'item_id', but that name is taken"),
    ],
)
def test_bad_renames(write: Write, columns: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(write("log.csv", EVENTS), columns=columns, now=NOW)


def test_events_of_one_person(write: Write, tmp_path: Path) -> None:
    events = read_events(write("me.csv", "sku\nz\na\nm\n"), columns={"sku": "item_id"})
    assert events.schema == INTERACTION_SCHEMA
    assert events["item_id"].to_list() == ["z", "a", "m"]
    assert events["user_id"].to_list() == ["", "", ""]
    assert events["timestamp"].is_sorted()
    assert events["timestamp"].n_unique() == 3
    pl.DataFrame({"item_id": [1, 2], "timestamp": [20, 10], "user_id": ["me", "me"]}).write_parquet(
        tmp_path / "me.parquet"
    )
    assert read_events(tmp_path / "me.parquet").select("user_id", "item_id").rows() == [
        ("me", "2"),
        ("me", "1"),
    ]
    with pytest.raises(DataError, match='no column "item_id"'):
        read_events(write("me.csv", "sku\nz\n"))
    with pytest.raises(DataError, match=r'row 2 .* column "item_id": the value is missing'):
        read_events(write("me.csv", "item_id,weight\nz,1\n,1\n"))
    with pytest.raises(DataError, match=r"no rows"):
        read_events(write("me.csv", "item_id\n"))


def test_an_unknown_bundled_name_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"^no bundled data set 'online_retail'; available: online-retail$"):
        load("online_retail")
