"""What the HTTP shell asks of the running system: plain values in, plain values out, no web and no tensors.

The shell checks form (types, lengths, ranges) and turns the errors below into answers; what is behind the protocol
checks meaning and keeps the promises: an acknowledged event is durable, and seen by the next list of the same person.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from palate.data.event import Event
from palate.errors import PalateError

Value = str | float | bool | None
Exploration = Literal["none", "thompson", "ucb"]


class NotFoundError(PalateError):
    """Nothing of this id is known; the message never repeats the id."""


class RefusedError(PalateError):
    """What is asked for contradicts how things stand: promoting a model that is already served, for one."""


class OverloadedError(PalateError):
    """A queue is full; the same request may succeed a little later."""


@dataclass(frozen=True)
class Condition:
    """One test of an attribute of an item; a missing value fulfils none but `missing`."""

    attribute: str
    op: Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "contains", "missing"]
    value: str | float | bool | tuple[str | float | bool, ...] | None = None


@dataclass(frozen=True)
class Filter:
    """Conditions on items, joined; filters can hold filters."""

    all: tuple["Filter | Condition", ...] = ()
    any: tuple["Filter | Condition", ...] = ()
    none: tuple["Filter | Condition", ...] = ()


class RowError(NamedTuple):
    """Why one row of a batch was not taken; the others were."""

    row: int
    """From 0, in the order of the request."""
    code: str
    message: str


class EventsTaken(NamedTuple):
    """What became of a batch: every row is counted once."""

    accepted: int
    duplicates: int
    errors: Sequence[RowError]


class PersonIn(NamedTuple):
    """A person with attributes; those not named keep their value, None takes one away."""

    user_id: str
    attributes: Mapping[str, Value]


class ItemIn(NamedTuple):
    """An item with attributes (title, price, …); those not named keep their value, None takes one away."""

    item_id: str
    attributes: Mapping[str, Value]
    hidden: bool | None = None
    """Whether it is left out of every list; None: as before."""


class ItemsTaken(NamedTuple):
    """What became of a batch of items or people."""

    accepted: int
    errors: Sequence[RowError]


class ItemOut(NamedTuple):
    """An item as stored."""

    item_id: str
    attributes: Mapping[str, Value]
    hidden: bool
    known_to_model: bool
    """Whether the served model lists it: in training or, by its content, since."""


class PersonOut(NamedTuple):
    """What is known of a person, and how it was learned."""

    user_id: str
    attributes: Mapping[str, Value]
    num_events: int
    recent: Sequence[Event]
    """The newest, newest first, at most 20."""
    model_id: str
    support: int
    """Events that the fast weights were adapted to: distinct chosen items that the model reads."""
    fast_weights: int
    """Numbers that are the person's own."""
    learned_from: Sequence[str]
    """In words: what the prior came from and what was adapted to."""


@dataclass(frozen=True)
class PredictRequest:
    """How someone would rate items: a known person, or someone without an id by the events of a session."""

    items: tuple[str, ...]
    user_id: str | None = None
    events: tuple[Event, ...] = ()
    """Of someone without an id, oldest first; empty when `user_id` is given. `user_id` of these is ""."""
    profile: Mapping[str, Value] = field(default_factory=dict)
    """Attributes of someone without an id."""


class PredictedRating(NamedTuple):
    """How one item would be rated."""

    item_id: str
    title: str
    mean: float
    median: float
    """One of the levels."""
    levels: Sequence[float]
    """The ratings that there are, in rising order."""
    probabilities: Sequence[float]
    """Of the levels."""


class PredictOut(NamedTuple):
    """Ratings foretold, in the order of the items asked about."""

    model_id: str
    items: Sequence[PredictedRating]


@dataclass(frozen=True)
class ListRequest:
    """One list: for a known person, or for the events of an anonymous session."""

    user_id: str | None = None
    events: tuple[Event, ...] = ()
    """Of an anonymous session, oldest first; empty when `user_id` is given. `user_id` of these is ""."""
    profile: Mapping[str, Value] = field(default_factory=dict)
    """Attributes of an anonymous person."""
    k: int = 10
    exclude: tuple[str, ...] = ()
    filter: Filter | None = None
    diversity: float = 0.0
    """0: by score alone; towards 1, items are asked to differ."""
    explore: Exploration = "none"
    scenario: str = "default"
    include_seen: bool = False
    parts: bool = False
    """Whether each line says what every scorer adds to its score."""


class Listed(NamedTuple):
    """One line of a list."""

    rank: int
    item_id: str
    title: str
    score: float
    propensity: float
    """Probability with which the item was to be in this list, given the person; 1 without exploration."""
    reason: str
    because: str | None
    parts: Mapping[str, float] | None = None
    """What every scorer adds to the score, where that was asked for; see `palate.Recommendation`."""


class ListOut(NamedTuple):
    """A list, and the id by which its clicks can be told."""

    recommendation_id: str
    model_id: str
    variant: str
    """"served" or "canary"."""
    fallback: bool
    """Whether nothing personal was known: no event, no session and no profile."""
    items: Sequence[Listed]


class JobOut(NamedTuple):
    """Work in the background."""

    job_id: str
    kind: str
    status: Literal["queued", "running", "done", "failed"]
    error: str | None
    created_at: float
    updated_at: float


class ModelOut(NamedTuple):
    """A model of the registry."""

    model_id: str
    status: Literal["candidate", "served", "canary", "refused", "retired"]
    created_at: float
    trained_until: float | None
    report: Mapping[str, object]
    """What the gate measured; empty before."""


class KeyOut(NamedTuple):
    """An API key without its secret."""

    key_id: str
    role: Literal["client", "service", "admin"]
    name: str
    created_at: float
    revoked_at: float | None


class Page(NamedTuple):
    """Part of a listing, and how to go on; `next` is None at the end."""

    rows: Sequence[object]
    next: str | None


@runtime_checkable
class Running(Protocol):
    """The running system.

    Methods raise NotFoundError, RefusedError, OverloadedError, StoreError (cannot read or write now), DataError and
    ConfigError (the request means nothing: the message is for the client).
    """

    async def add_events(self, events: Sequence[Event]) -> EventsTaken:
        """Store events; returns when they are durable and part of what the next list reads."""
        ...

    async def add_people(self, people: Sequence[PersonIn]) -> ItemsTaken:
        """Add or change people."""
        ...

    async def add_items(self, items: Sequence[ItemIn]) -> ItemsTaken:
        """Add or change items; returns when they are durable and can be listed (or are hidden)."""
        ...

    async def people(self, after: str | None, limit: int) -> Page:
        """People as `PersonIn`, in the order of their ids. DataError: a cursor that is none."""
        ...

    async def items(self, after: str | None, limit: int) -> Page:
        """Items as `ItemOut`, in the order of their ids. DataError: a cursor that is none."""
        ...

    async def events_of(self, user_id: str, after: str | None, limit: int) -> Page:
        """A person's events as `Event`, oldest stored first. NotFoundError: unknown person."""
        ...

    async def recommend(self, requests: Sequence[ListRequest]) -> Sequence[ListOut]:
        """Lists, in the order of the requests, all by the same version of the model of their variant."""
        ...

    async def similar(self, item_id: str, k: int) -> Sequence[Listed]:
        """Items nearest to one; NotFoundError."""
        ...

    async def predict(self, request: PredictRequest) -> PredictOut:
        """How someone would rate items; NotFoundError: an item; RefusedError: the model has learned no ratings."""
        ...

    async def person(self, user_id: str) -> PersonOut:
        """What is known of someone; NotFoundError."""
        ...

    async def erase(self, user_id: str) -> JobOut:
        """Forget a person at once and clean the files in a job; NotFoundError."""
        ...

    async def job(self, job_id: str) -> JobOut:
        """How a job stands; NotFoundError."""
        ...

    async def retrain(self) -> JobOut:
        """Start training a candidate; RefusedError: one is at work."""
        ...

    async def models(self) -> Sequence[ModelOut]:
        """All of the registry, newest first."""
        ...

    async def promote(self, model_id: str, share: float) -> ModelOut:
        """Serve a model to everyone (share 1) or as canary to a share of people; NotFoundError, RefusedError."""
        ...

    async def rollback(self) -> ModelOut:
        """Serve the previous model again, or end the canary if there is one; RefusedError: there is none."""
        ...

    async def add_key(self, role: Literal["client", "service", "admin"], name: str) -> tuple[KeyOut, str]:
        """Make a key; the secret text is shown this once."""
        ...

    async def keys(self) -> Sequence[KeyOut]:
        """All keys, without secrets."""
        ...

    async def revoke_key(self, key_id: str) -> KeyOut:
        """End a key; NotFoundError."""
        ...

    def role_of(self, key: str) -> tuple[str, Literal["client", "service", "admin"]] | None:
        """The id and role of a presented key, in constant time; None if it is none or revoked. Fast: no I/O."""
        ...

    def metrics(self) -> bytes:
        """Figures in the text format of Prometheus."""
        ...

    def ready(self) -> str | None:
        """None when lists can be made; else why not, in a few words."""
        ...
