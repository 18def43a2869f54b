"""The items that can be listed: one version of a model with the store's catalogue, never changed once made.

A list is made from one shelf alone, so the numbers of items and the weights that know them are always of one version.
The store says which items there are, what they are called and which are hidden; the model says how they are scored.
Items that it has not been trained on are added by their content.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from palate.data.catalog import TEXT_NAMES, Catalog
from palate.errors import DataError
from palate.recommend import Recommender
from palate.service.contract import Condition, Filter, Value

_FILTERS_KEPT = 256
"""Filters whose answers are kept for a shelf: shops ask the same few again and again."""
_PROFILES_KEPT = 10_000
_OF_ITEMS = ("number_of", "listed", "unlisted", "kinds")
"""What a shelf computes once from its items and the vocabulary alone."""


class Item(NamedTuple):
    """An item as the store has it."""

    item_id: str
    attributes: Mapping[str, Value]
    hidden: bool


@dataclass(frozen=True, eq=False)
class Shelf:
    """A model and the items it can list."""

    model: Recommender
    """It knows every item of the store that is not hidden and can be described to it."""
    items: Mapping[str, Item]
    """The store's, by id."""
    revision: int
    """The store's count of changes up to which the items are as stored."""
    token: object = field(default_factory=object)
    """Tells this shelf from all others without keeping it alive."""
    _masks: dict[str, Bool[np.ndarray, "item"]] = field(default_factory=dict)
    _profiles: dict[tuple[tuple[str, Value], ...], Float[Tensor, "profile"]] = field(default_factory=dict)

    @cached_property
    def number_of(self) -> Mapping[str, int]:
        """The model's number of each item it knows."""
        return {item_id: number for number, item_id in enumerate(self.model.vocabulary.ids)}

    @cached_property
    def listed(self) -> Bool[np.ndarray, "item"]:
        """Of each number whether it may be in a list: stored and not hidden."""
        stored = (self.items.get(item_id) for item_id in self.model.vocabulary.ids)
        return np.fromiter((item is not None and not item.hidden for item in stored), np.bool_)

    @cached_property
    def unlisted(self) -> Int64[np.ndarray, "item"]:
        """Numbers that no list may hold."""
        return np.flatnonzero(~self.listed)

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """Of each attribute whether it is a "number" or "text"."""
        found: dict[str, str] = {}
        for item in self.items.values():
            for name, value in item.attributes.items():
                if value is not None and name not in found:
                    found[name] = kind_of(value)
        return found

    def profile(self, read: tuple[tuple[str, Value], ...]) -> Float[Tensor, "profile"]:
        """What the model makes of attributes that it reads; many people have the same."""
        found = self._profiles.get(read)
        if found is None:
            found = self.model.encode_profile(dict(read))
            if len(self._profiles) >= _PROFILES_KEPT:
                self._profiles.clear()
            self._profiles[read] = found
        return found

    def title(self, number: int) -> str:
        """What to show for an item."""
        item_id = self.model.vocabulary.ids[number]
        item = self.items.get(item_id)
        return item_id if item is None else title_of(item)

    def allowed(self, filter: Filter) -> Bool[np.ndarray, "item"]:
        """Of each number whether it may be in a list that is filtered so.

        Raises:
            DataError: an attribute that no item has, or one compared with what it is not.
        """
        key = repr(filter)  # a filter equals another whose 1 is true
        found = self._masks.get(key)
        if found is None:
            found = self._mask(filter) & self.listed
            if len(self._masks) >= _FILTERS_KEPT:
                self._masks.clear()
            self._masks[key] = found
        return found

    def _mask(self, part: Filter | Condition) -> Bool[np.ndarray, "item"]:
        if isinstance(part, Condition):
            return self._condition(part)
        mask = np.ones(len(self.model.vocabulary), np.bool_)
        for inner in part.all:
            mask &= self._mask(inner)
        if part.any:
            mask &= np.logical_or.reduce([self._mask(inner) for inner in part.any])
        for inner in part.none:
            mask &= ~self._mask(inner)
        return mask

    def _condition(self, condition: Condition) -> Bool[np.ndarray, "item"]:
        if condition.attribute not in self.kinds:
            raise DataError("filter: an attribute that no item has; GET /v1/items shows what items are described by")
        column = self._column(condition.attribute)
        given = condition.value
        if condition.op == "missing":
            return np.asarray(column.is_null().to_numpy(), np.bool_)
        values = given if isinstance(given, tuple) else () if given is None else (given,)
        kind = self.kinds[condition.attribute]
        if not values or any(kind_of(value) != kind for value in values):
            raise DataError(f"filter: the attribute is a {kind}; compare it with one")
        plain = [float(value) if kind == "number" else _text(value) for value in values]
        if (condition.op == "in") != isinstance(given, tuple):
            raise DataError('filter: "in" takes a list of values, and nothing else does')
        if condition.op == "contains" and kind != "text":
            raise DataError('filter: "contains" is for text')
        return np.asarray(_TESTS[condition.op](column, plain).fill_null(False).to_numpy(), np.bool_)

    def _column(self, attribute: str) -> pl.Series:
        """An attribute of all items, by number."""
        number = self.kinds[attribute] == "number"
        stored = (self.items.get(item_id) for item_id in self.model.vocabulary.ids)
        values = (None if item is None else item.attributes.get(attribute) for item in stored)
        plain = [None if value is None else float(value) if number else _text(value) for value in values]
        return pl.Series(attribute, plain, dtype=pl.Float64 if number else pl.String)


def kind_of(value: str | float | bool) -> str:
    """ "number" or "text"; true and false are text, as in a catalogue."""
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else "text"


def title_of(item: Item) -> str:
    """What to show for an item: its text, or its id."""
    return text_of(item) or item.item_id


def text_of(item: Item) -> str | None:
    """The text that an item is read by: the first of a catalogue's text columns that it has."""
    found = (item.attributes.get(name) for name in TEXT_NAMES)
    return next((value for value in found if isinstance(value, str) and value), None)


def make_shelf(model: Recommender, items: Iterable[Item], revision: int) -> Shelf:
    """Put the store's items on a model's shelf.

    Raises:
        DataError: an item that the model cannot be told of.
    """
    stored = {item.item_id: item for item in items}
    return Shelf(_with_items(model, stored.values()), stored, revision)


def refreshed(shelf: Shelf, changed: Iterable[Item], revision: int) -> Shelf:
    """The shelf after changes in the store; what is known to the model already keeps its vectors."""
    changes = {item.item_id: item for item in changed}
    return Shelf(_with_items(shelf.model, changes.values()), {**shelf.items, **changes}, revision)


def moved(shelf: Shelf, model: Recommender) -> Shelf:
    """The shelf with the same model after its items' rows have moved; what is known of the items is not asked again."""
    other = Shelf(model, shelf.items, shelf.revision, _masks=shelf._masks, _profiles=shelf._profiles)
    other.__dict__.update({name: shelf.__dict__[name] for name in _OF_ITEMS if name in shelf.__dict__})
    return other


def exchanged(shelf: Shelf, model: Recommender) -> Shelf:
    """The same items on the shelf of another model."""
    return Shelf(_with_items(model, shelf.items.values()), shelf.items, shelf.revision)


def _with_items(model: Recommender, items: Iterable[Item]) -> Recommender:
    """The model with those of the items that it does not know and that are not hidden."""
    new = [item for item in items if item.item_id not in model.vocabulary and not item.hidden]
    return model.add_items(describe(model, new)) if new else model


def describe(model: Recommender, items: Iterable[Item]) -> Catalog:
    """Items as a catalogue with the columns that a model was trained with; what an item lacks is missing."""
    items = list(items)
    columns: dict[str, pl.Series] = {"item_id": pl.Series([item.item_id for item in items], dtype=pl.String)}
    parts: dict[str, list[str]] = {"numeric": [], "categorical": []}
    for column in model.item_table.encoder.columns:
        values = [item.attributes.get(column.name) for item in items]
        parts[column.kind].append(column.name)
        if column.kind == "numeric":
            plain: list[float | None] = [
                float(value) if value is not None and kind_of(value) == "number" else None for value in values
            ]
            columns[column.name] = pl.Series(plain, dtype=pl.Float64)
        else:
            texts = [None if value is None else _text(value) for value in values]
            columns[column.name] = pl.Series(texts, dtype=pl.String)
    text = None
    if (
        len(model.item_table.content_rotation.mean) > 1 + model.item_table.encoder.dim
    ):  # without texts, one column stands for them
        text = TEXT_NAMES[0]
        columns[text] = pl.Series([text_of(item) for item in items], dtype=pl.String)
    return Catalog(pl.DataFrame(columns), text, tuple(parts["numeric"]), tuple(parts["categorical"]))


def _text(value: str | float | bool) -> str:
    """A value of a category; true and false as a catalogue's column of them reads them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_TESTS: Mapping[str, Callable[[pl.Series, list[Any]], pl.Series]] = {
    "eq": lambda column, values: column == values[0],
    "ne": lambda column, values: column != values[0],
    "lt": lambda column, values: column < values[0],
    "le": lambda column, values: column <= values[0],
    "gt": lambda column, values: column > values[0],
    "ge": lambda column, values: column >= values[0],
    "in": lambda column, values: column.is_in(values),
    "contains": lambda column, values: column.str.contains(values[0], literal=True),
}
