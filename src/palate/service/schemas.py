"""What a request may look like: strict types, bounded lengths, no unknown fields; and how it becomes plain values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    StringConstraints,
    with_config,
)
from pydantic.config import JsonDict
from pydantic_core import CoreSchema
from pydantic_core.core_schema import custom_error_schema, no_info_after_validator_function
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from palate.data.event import Event
from palate.service.contract import ItemIn, PersonIn

MAX_ROWS: Final = 1_000
MAX_ATTRIBUTES: Final = 64
PRINTABLE: Final = r"^[^\x00-\x1f\x7f-\x9f]+$"


class Says:
    """Replaces the messages of a type by one that a reader understands."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return custom_error_schema(handler(source), "form", custom_error_message=self._message)


Id = Annotated[
    str,
    StringConstraints(min_length=1, max_length=256, pattern=PRINTABLE),
    Says("expected a text of 1 to 256 characters without control characters"),
]
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64, pattern=PRINTABLE),
    Says("expected a text of 1 to 64 characters without control characters"),
]
# PostgreSQL cannot store U+0000.
Text = Annotated[str, StringConstraints(max_length=2_000, pattern=r"^[^\x00]*$")]
Plain = Annotated[
    Text | bool | float | None,
    Says("expected a text of at most 2,000 characters without U+0000, a finite number, true, false or null"),
]
Attributes = Annotated[
    dict[Name, Plain], Field(max_length=MAX_ATTRIBUTES, json_schema_extra={"additionalProperties": False})
]
_EXAMPLE_EVENT: Final[JsonDict] = {
    "user_id": "u-1",
    "item_id": "mug-7",
    "event_type": "click",
    "timestamp": 1767225600.0,
}


class Body(BaseModel):
    """What all parts of a request have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


_EVENT: Final[Mapping[str, Any]] = {
    "user_id": Id,
    "item_id": Id,
    "event_type": Annotated[Name, Field(description="click, cart, purchase, … as in the training data")],
    "timestamp": Annotated[float | None, Field(ge=0, le=253_402_300_799, description="seconds since 1970 UTC")],
    "weight": Annotated[float, Field(ge=-1e6, le=1e6, description="such as a number of pieces or of stars")],
    "event_id": Annotated[Id | None, Field(description="your own id: sent again, the event is stored once")],
    "session_id": Id | None,
    "recommendation_id": Annotated[Id | None, Field(description="of the list that led to the event")],
}
"""What each field of an `Event` may hold in a body; names and defaults are the record's own."""


def _event_body(name: str, description: str, fields: Sequence[str], extra: JsonDict | None = None) -> type:
    """A body of some of these fields."""
    defaults = Event._field_defaults
    parts = {
        field: Annotated[_EVENT[field], Field(default=defaults[field])] if field in defaults else _EVENT[field]
        for field in fields
    }
    config: ConfigDict = {**Body.model_config, "json_schema_extra": extra}
    body: type = TypedDict(name, parts)  # type: ignore[misc]
    body.__doc__ = description
    return with_config(config)(body)


def _read_as(body: type, read: Callable[[dict[str, Any]], Event]) -> GetPydanticSchema:
    """Say how an event is read: straight from the fields of a body; a model in between costs a sixth of the reading."""
    return GetPydanticSchema(
        lambda source, handler: no_info_after_validator_function(read, handler.generate_schema(body))
    )


EVENT_BODY: Final = _event_body(
    "Event", "Something that a person did with an item.", Event._fields, {"examples": [_EXAMPLE_EVENT]}
)
_SESSION_BODY: Final = _event_body(
    "SessionEvent", "An event of someone who has no id.", ("item_id", "event_type", "timestamp", "weight")
)
SentEvent = Annotated[Event, _read_as(EVENT_BODY, lambda fields: Event(**fields))]
SessionEvent = Annotated[Event, _read_as(_SESSION_BODY, lambda fields: Event("", **fields))]


class Person(Body):
    """A person with attributes; those not named keep their value, null takes one away."""

    user_id: Id
    attributes: Attributes = Field(default_factory=dict)
    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u-1", "attributes": {"country": "France"}}]})


class Item(Body):
    """An item with attributes; those not named keep their value, null takes one away."""

    item_id: Id
    attributes: Attributes = Field(default_factory=dict)
    hidden: Annotated[bool | None, Field(description="true: in no list; null: as before")] = None
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"item_id": "mug-7", "attributes": {"title": "red mug", "price": 8.5}}]}
    )


class Events(Body):
    """A batch of events; each row is judged on its own."""

    events: Annotated[list[SentEvent], Field(min_length=1, max_length=MAX_ROWS)]


class People(Body):
    """A batch of people; each row is judged on its own."""

    users: Annotated[list[Person], Field(min_length=1, max_length=MAX_ROWS)]


class Items(Body):
    """A batch of items; each row is judged on its own."""

    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_ROWS)]


class Share(Body):
    """How many people a model is for."""

    share: Annotated[float, Field(gt=0, le=1, description="1: everyone; below, a canary for this share of people")] = (
        1.0
    )


class NewKey(Body):
    """A key to make."""

    role: Literal["client", "service", "admin"]
    name: Annotated[Name, Field(description="whose key it is, for the listing")]
    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "client", "name": "web shop"}]})


def to_person(row: Person) -> PersonIn:
    """A person to add or change."""
    return PersonIn(row.user_id, row.attributes)


def to_item(row: Item) -> ItemIn:
    """An item to add or change."""
    return ItemIn(row.item_id, row.attributes, row.hidden)
