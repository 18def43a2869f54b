"""What answers look like: the models that document them, and plain values made JSON.

The models are for the documentation and the tests; an answer is written from the values of the contract directly,
which is several times cheaper than building models first.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, create_model
from pydantic_core import to_json
from starlette.responses import Response

from palate.data.event import Event
from palate.service.contract import ListOut, Page

_HEADERS: Final = {"cache-control": "no-store"}
Plain = str | float | bool | None
Time = Annotated[float, Field(description="seconds since 1970 UTC")]


class Answer(BaseModel):
    """What all answers have in common."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class RowFault(Answer):
    """Why one row was not taken; the others were."""

    row: Annotated[int, Field(description="place in the request, from 0")]
    code: str
    message: str


class EventsAnswer(Answer):
    """What became of the events; all that were accepted are durable, and the next list reads them."""

    accepted: int
    duplicates: Annotated[int, Field(description="events whose id was stored before; they changed nothing")]
    errors: list[RowFault]


class RowsAnswer(Answer):
    """What became of the rows."""

    accepted: int
    errors: list[RowFault]


class Line(Answer):
    """One line of a list."""

    rank: int
    item_id: str
    title: str
    score: float
    propensity: Annotated[float, Field(description="probability of being listed; 1 without exploration")]
    reason: str
    because: Annotated[str | None, Field(description="the person's item that speaks for this one most")]
    parts: Annotated[
        dict[str, float] | None, Field(description="what every scorer adds to the score, where it was asked for")
    ]


class ListAnswer(Answer):
    """A list, and the id by which its clicks are told: send it back as `recommendation_id` of an event."""

    recommendation_id: str
    model_id: str
    variant: Literal["served", "canary"]
    fallback: Annotated[bool, Field(description="whether nothing personal was known")]
    items: list[Line]


class ListsAnswer(Answer):
    """Lists, in the order of the request."""

    lists: list[ListAnswer]


class SimilarAnswer(Answer):
    """The items nearest to one."""

    items: list[Line]


class RatingLine(Answer):
    """How one item would be rated."""

    item_id: str
    title: str
    mean: float
    median: Annotated[float, Field(description="one of the levels")]
    levels: Annotated[list[float], Field(description="the ratings that there are, in rising order")]
    probabilities: Annotated[list[float], Field(description="of the levels")]


class PredictAnswer(Answer):
    """Ratings foretold, in the order of the items asked about."""

    model_id: str
    items: list[RatingLine]


_SHOWN: Final[Mapping[str, Any]] = {
    "event_id": str,
    "item_id": str,
    "event_type": str,
    "timestamp": Time,
    "weight": float,
}
"""The fields of an `Event` that answers show."""
_STORED_EVENT: Final = create_model("StoredEvent", __base__=Answer, __doc__="An event as stored.", **_SHOWN)
ShownEvent = Annotated[Event, GetPydanticSchema(lambda source, handler: handler.generate_schema(_STORED_EVENT))]


class StoredPerson(Answer):
    """A person as stored."""

    user_id: str
    attributes: dict[str, Plain]


class StoredItem(Answer):
    """An item as stored."""

    item_id: str
    attributes: dict[str, Plain]
    hidden: bool
    known_to_model: Annotated[bool, Field(description="whether the served model can list it")]


class PersonAnswer(StoredPerson):
    """What is known of a person, and how it was learned."""

    num_events: int
    recent: Annotated[list[ShownEvent], Field(description="newest first, at most 20")]
    model_id: str
    support: Annotated[int, Field(description="events that the fast weights were adapted to")]
    fast_weights: Annotated[int, Field(description="numbers that are the person's own")]
    learned_from: list[str]


Next = Annotated[str | None, Field(description="send it as `after` for the rows that follow; null at the end")]


class EventPage(Answer):
    """Part of a person's events, oldest first."""

    rows: list[ShownEvent]
    next: Next


class PersonPage(Answer):
    """Part of the people, by id."""

    rows: list[StoredPerson]
    next: Next


class ItemPage(Answer):
    """Part of the items, by id."""

    rows: list[StoredItem]
    next: Next


class JobAnswer(Answer):
    """Work in the background."""

    job_id: str
    kind: str
    status: Literal["queued", "running", "done", "failed"]
    error: str | None
    created_at: Time
    updated_at: Time


class ModelAnswer(Answer):
    """A model of the registry."""

    model_id: str
    status: Literal["candidate", "served", "canary", "refused", "retired"]
    created_at: Time
    trained_until: Time | None
    report: Annotated[dict[str, Any], Field(description="what the gate measured; empty before")]


class ModelsAnswer(Answer):
    """The registry, newest first."""

    models: list[ModelAnswer]


class KeyAnswer(Answer):
    """An API key without its secret."""

    key_id: str
    role: Literal["client", "service", "admin"]
    name: str
    created_at: Time
    revoked_at: Time | None


class NewKeyAnswer(KeyAnswer):
    """A new API key."""

    key: Annotated[str, Field(description="the secret; it is shown this once")]


class KeysAnswer(Answer):
    """All keys, without secrets."""

    keys: list[KeyAnswer]


class HealthAnswer(Answer):
    """A sign of life."""

    status: Literal["ok"]


def answer(value: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON object as a response."""
    # NaN is not JSON; a report may hold one.
    return Response(to_json(value, inf_nan_mode="null"), status, {**_HEADERS, **(headers or {})}, "application/json")


def rows(values: Iterable[Any]) -> list[dict[str, Any]]:
    """NamedTuples as JSON objects."""
    return [value._asdict() for value in values]


def event_rows(events: Iterable[Any]) -> list[dict[str, Any]]:
    """Events as JSON objects."""
    return [{name: getattr(event, name) for name in _SHOWN} for event in events]


def page_object(page: Page) -> dict[str, object]:
    """Part of a listing as a JSON object."""
    return {"rows": rows(page.rows), "next": page.next}


def list_object(made: ListOut) -> dict[str, object]:
    """A list as a JSON object."""
    return {**made._asdict(), "items": rows(made.items)}


def lists_object(made: Sequence[ListOut]) -> dict[str, object]:
    """Lists as a JSON object."""
    return {"lists": [list_object(each) for each in made]}
