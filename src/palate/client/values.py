"""What goes to the service and what comes back, as plain values."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from palate.data.event import Event

Value = str | float | bool | None
Role = Literal["client", "service", "admin"]
Exploration = Literal["none", "thompson", "ucb"]


class RowFault(NamedTuple):
    """A row that was not taken; the others were."""

    row: int
    code: str
    message: str


class Taken(NamedTuple):
    """What became of rows that were sent."""

    accepted: int
    duplicates: int
    errors: tuple[RowFault, ...]


class Line(NamedTuple):
    """One line of a list."""

    rank: int
    item_id: str
    title: str
    score: float
    propensity: float
    reason: str
    because: str | None
    parts: Mapping[str, float] | None
    """What every scorer adds to the score, where that was asked for."""


class Listing(NamedTuple):
    """A list of items, and the id to send back with the events that follow from it."""

    recommendation_id: str
    model_id: str
    variant: str
    fallback: bool
    items: tuple[Line, ...]


class RatingLine(NamedTuple):
    """How one item would be rated."""

    item_id: str
    title: str
    mean: float
    median: float
    """One of the levels."""
    levels: tuple[float, ...]
    """The ratings that there are, in rising order."""
    probabilities: tuple[float, ...]
    """Of the levels."""


class Person(NamedTuple):
    """A person with attributes; on sending, None takes one away."""

    user_id: str
    attributes: Mapping[str, Value]


class Item(NamedTuple):
    """An item to add or change; on sending, an attribute that is None is taken away."""

    item_id: str
    attributes: Mapping[str, Value]
    hidden: bool | None = None
    """None: as before."""


class StoredItem(NamedTuple):
    """An item as stored."""

    item_id: str
    attributes: Mapping[str, Value]
    hidden: bool
    known_to_model: bool


class Knowledge(NamedTuple):
    """What is known of a person, and how it was learned."""

    user_id: str
    attributes: Mapping[str, Value]
    num_events: int
    recent: tuple[Event, ...]
    """Newest first, at most 20; without their sessions and lists."""
    model_id: str
    support: int
    fast_weights: int
    learned_from: tuple[str, ...]


class Job(NamedTuple):
    """Work in the background of the service."""

    job_id: str
    kind: str
    status: Literal["queued", "running", "done", "failed"]
    error: str | None
    created_at: float
    updated_at: float


class Model(NamedTuple):
    """A model of the registry."""

    model_id: str
    status: str
    created_at: float
    trained_until: float | None
    report: Mapping[str, Any]


class Key(NamedTuple):
    """An API key without its secret."""

    key_id: str
    role: Role
    name: str
    created_at: float
    revoked_at: float | None


Row = TypeVar("Row", Person, StoredItem, Line, Job, Model, Key)


def read(kind: type[Row], row: Mapping[str, Any]) -> Row:
    """A value from an answer; fields that a newer service has added are left out."""
    return kind(**{name: row[name] for name in kind._fields})


def read_event(user_id: str, row: Mapping[str, Any]) -> Event:
    """A person's event from an answer, which tells neither its session nor its list."""
    return Event(user_id, **{name: row[name] for name in Event._fields if name in row})


def read_rating(answer: Mapping[str, Any]) -> RatingLine:
    """How an item would be rated, from an answer."""
    known = {name: answer[name] for name in RatingLine._fields}
    return RatingLine(**known | {name: tuple(known[name]) for name in ("levels", "probabilities")})


def read_listing(answer: Mapping[str, Any]) -> Listing:
    """A list from an answer."""
    lines = tuple(read(Line, line) for line in answer["items"])
    return Listing(answer["recommendation_id"], answer["model_id"], answer["variant"], answer["fallback"], lines)


def read_knowledge(answer: Mapping[str, Any]) -> Knowledge:
    """What is known of a person, from an answer."""
    known = {name: answer[name] for name in Knowledge._fields}
    known["recent"] = tuple(read_event(answer["user_id"], event) for event in answer["recent"])
    known["learned_from"] = tuple(answer["learned_from"])
    return Knowledge(**known)


def given(row: Event | Item) -> dict[str, Any]:
    """The fields of a row that say something."""
    return {name: value for name, value in row._asdict().items() if value is not None}
