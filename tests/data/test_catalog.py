"""Catalogue and profiles: what is guessed, what is refused."""

import polars as pl
import pytest

from palate.data.catalog import Catalog, Profiles
from palate.errors import DataError

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b"],
        "description": ["a long text", "another"],
        "title": ["Lamp", None],
        "price": [3, None],
        "colour": ["red", "blue"],
        "on_sale": [True, False],
    }
)


def test_infer_gives_each_column_its_part() -> None:
    catalog = Catalog.infer(ITEMS)
    assert (catalog.text, catalog.numeric, catalog.categorical) == (
        "title",
        ("price",),
        ("colour", "on_sale"),
    )
    assert catalog.frame.rows() == [("a", "Lamp", 3.0, "red", "true"), ("b", None, None, "blue", "false")]
    assert catalog.frame.columns == ["item_id", "title", "price", "colour", "on_sale"]


def test_an_item_without_a_text_is_shown_by_its_id() -> None:
    assert Catalog.infer(ITEMS).titles() == {"a": "Lamp", "b": "b"}
    assert Catalog.from_ids(["z", "a", "z"]).titles() == {"a": "a", "z": "z"}


@pytest.mark.parametrize(
    ("text", "numeric", "categorical", "message"),
    [
        ("name", (), (), 'no column "name"'),
        (None, ("weight",), (), 'no column "weight"'),
        ("price", (), (), '"price" has type Int64; expected text'),
        (None, (), ("on_sale",), '"on_sale" has type Boolean; expected text'),
        (None, ("colour",), (), '"colour" has type String; expected numbers'),
        ("title", (), ("title",), '"title" is named for two parts'),
    ],
)
def test_wrong_columns_are_refused(
    text: str | None, numeric: tuple[str, ...], categorical: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Catalog(ITEMS, text, numeric, categorical)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(DataError, match=rf"\"price\" of item_id 'b' is {value}; expected a finite number"):
        Catalog.infer(pl.DataFrame({"item_id": ["a", "b"], "price": [1.0, value]}))


def test_ids_are_unique() -> None:
    with pytest.raises(DataError, match="'a' was already used"):
        Catalog.infer(pl.DataFrame({"item_id": ["a", "a"]}))
    with pytest.raises(DataError, match="'7' was already used"):
        Profiles.infer(pl.DataFrame({"user_id": [7, 7]}))


def test_profiles() -> None:
    people = Profiles.infer(pl.DataFrame({"user_id": [1, 2], "age": [30, None], "name": ["Ann", "Bob"]}))
    assert (people.numeric, people.categorical) == (("age",), ("name",))
    assert people.frame.rows() == [("1", 30.0, "Ann"), ("2", None, "Bob")]
    assert Profiles.from_ids(["b", "a", "b"]).frame.rows() == [("a",), ("b",)]
    with pytest.raises(DataError, match='profiles: no column "height"'):
        Profiles(people.frame, ("height",), ())
