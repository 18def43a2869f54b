"""What a request for lists may look like: for whom, how long, how it is filtered and explored."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.config import JsonDict

from palate.data.event import Event
from palate.service.contract import Condition, Exploration, Filter, ListRequest, PredictRequest, Value
from palate.service.schemas import MAX_ROWS, Attributes, Body, Id, Name, Says, SessionEvent, Text

MAX_K: Final = 500
MAX_LINES: Final = 10_000
MAX_DEPTH: Final = 4
MAX_CONDITIONS: Final = 64
_EXAMPLE_FILTER: Final[JsonDict] = {
    "all": [{"attribute": "price", "op": "le", "value": 20}, {"attribute": "colour", "op": "in", "value": ["red"]}]
}


_VALUE_OF: Final[Mapping[str, type]] = {"in": list, "contains": str, "missing": type(None)}


class ConditionBody(Body):
    """One test of an item's attribute; a missing value fulfils none but `missing`."""

    attribute: Name
    op: Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "contains", "missing"]
    value: Annotated[
        Text | bool | float | Annotated[list[Text | bool | float], Field(min_length=1, max_length=256)] | None,
        Says("expected a text, a finite number, true or false, or for `in` a list of 1 to 256 of them"),
        Field(description="a list for `in`, a text for `contains`, left out for `missing`"),
    ] = None

    @model_validator(mode="after")
    def _fits(self) -> "ConditionBody":
        if not isinstance(self.value, _VALUE_OF.get(self.op, (str, bool, int, float))):
            raise ValueError("the value does not fit op: a list for in, a text for contains, none for missing")
        return self

    def plain(self) -> Condition:
        """The same for the running system."""
        return Condition(self.attribute, self.op, tuple(self.value) if isinstance(self.value, list) else self.value)


def _kind_of_filter(value: object) -> str:
    return "#condition" if isinstance(value, dict) and "attribute" in value else "#filter"


Part = Annotated[
    Annotated[ConditionBody, Tag("#condition")] | Annotated["FilterBody", Tag("#filter")],
    Discriminator(_kind_of_filter),
]
Parts = Annotated[list[Part], Field(max_length=MAX_CONDITIONS)]


class FilterBody(Body):
    """Conditions joined: `all` of them hold, `any` one (if there is one) holds, `none` holds."""

    all: Parts = Field(default_factory=list)
    any: Parts = Field(default_factory=list)
    none: Parts = Field(default_factory=list)
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_FILTER]})

    def plain(self) -> Filter:
        """The same for the running system."""
        every, some, never = ([part.plain() for part in parts] for parts in (self.all, self.any, self.none))
        return Filter(tuple(every), tuple(some), tuple(never))


def _bounded(body: FilterBody) -> FilterBody:
    level: list[FilterBody | ConditionBody] = [body]
    conditions = depth = 0
    while level:
        conditions += sum(isinstance(part, ConditionBody) for part in level)
        filters = [part for part in level if isinstance(part, FilterBody)]
        depth += bool(filters)
        if depth > MAX_DEPTH or conditions > MAX_CONDITIONS:
            raise ValueError(f"a filter holds at most {MAX_CONDITIONS} conditions, {MAX_DEPTH} levels deep")
        level = [part for each in filters for part in (*each.all, *each.any, *each.none)]
    return body


class ListOptions(Body):
    """How a list is made, for whomever."""

    many: ClassVar[bool] = False
    """Whether the answer is several lists."""
    k: Annotated[int, Field(ge=1, le=MAX_K, description="length of the list")] = 10
    exclude: list[Id] = Field(default_factory=list, max_length=MAX_ROWS, description="items to leave out")
    filter: Annotated[FilterBody, AfterValidator(_bounded)] | None = None
    diversity: Annotated[float, Field(ge=0, le=1, description="0: by score alone; towards 1, items differ more")] = 0.0
    explore: Annotated[Exploration, Field(description="whether to try what is uncertain")] = "none"
    scenario: Annotated[
        Name, Field(description="where the list is shown, such as basket; the log and estimates tell lists apart by it")
    ] = "default"
    include_seen: Annotated[bool, Field(description="also list what the person has chosen before")] = False
    parts: Annotated[bool, Field(description="also say what every scorer adds to each score")] = False

    def request(
        self, user_id: str | None, events: tuple[Event, ...] = (), profile: Mapping[str, Value] | None = None
    ) -> ListRequest:
        """The same for the running system, for a person or a session."""
        return ListRequest(
            user_id,
            events,
            profile or {},
            self.k,
            tuple(self.exclude),
            None if self.filter is None else self.filter.plain(),
            self.diversity,
            self.explore,
            self.scenario,
            self.include_seen,
            self.parts,
        )


class ForPerson(ListOptions):
    """A list for one person; nobody knows them: the list for a newcomer."""

    user_id: Id
    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u-1", "k": 10, "filter": _EXAMPLE_FILTER}]})

    def requests(self) -> list[ListRequest]:
        """One request."""
        return [self.request(self.user_id)]


class ForPeople(ListOptions):
    """Lists for many people at once, in their order; people times `k` is at most 10,000."""

    many: ClassVar[bool] = True
    users: Annotated[list[Id], Field(min_length=1, max_length=MAX_ROWS)]
    model_config = ConfigDict(json_schema_extra={"examples": [{"users": ["u-1", "u-2"], "k": 5}]})

    @model_validator(mode="after")
    def _bounded(self) -> "ForPeople":
        if len(self.users) * self.k > MAX_LINES:
            raise ValueError(f"people times k is at most {MAX_LINES}")
        return self

    def requests(self) -> list[ListRequest]:
        """One request for each person."""
        return [self.request(user) for user in self.users]


class ForSession(ListOptions):
    """A list for someone without an id; nothing of the session is stored but the list."""

    events: Annotated[list[SessionEvent], Field(max_length=MAX_ROWS, description="oldest first")]
    profile: Attributes = Field(default_factory=dict)
    model_config = ConfigDict(json_schema_extra={"examples": [{"events": [{"item_id": "mug-7"}], "k": 10}]})

    def requests(self) -> list[ListRequest]:
        """One request."""
        return [self.request(None, tuple(self.events), self.profile)]


class Asked(Body):
    """Which ratings are asked for."""

    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_K, description="items to foretell the rating of")]


class RatingsOfPerson(Asked):
    """How a person would rate items, given what they have rated; nobody knows them: how a newcomer would."""

    user_id: Id
    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u-1", "items": ["mug-7"]}]})

    def request(self) -> PredictRequest:
        """The same for the running system."""
        return PredictRequest(tuple(self.items), self.user_id)


class RatingsOfSession(Asked):
    """How someone without an id would rate items; nothing of it is stored."""

    events: Annotated[list[SessionEvent], Field(max_length=MAX_ROWS, description="oldest first; those that rate count")]
    profile: Attributes = Field(default_factory=dict)
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"events": [{"item_id": "mug-7", "event_type": "rating", "weight": 4}], "items": ["cup-2"]},
            ]
        }
    )

    def request(self) -> PredictRequest:
        """The same for the running system."""
        return PredictRequest(tuple(self.items), None, tuple(self.events), self.profile)


def _kind_of_list(value: object) -> str | None:
    given = [name for name in ("user_id", "users", "events") if isinstance(value, dict) and name in value]
    return f"#{given[0]}" if len(given) == 1 else None


def _kind_of_ratings(value: object) -> str | None:
    given = [name for name in ("user_id", "events") if isinstance(value, dict) and name in value]
    return f"#{given[0]}" if len(given) == 1 else None


ListBody = Annotated[
    Annotated[ForPerson, Tag("#user_id")] | Annotated[ForPeople, Tag("#users")] | Annotated[ForSession, Tag("#events")],
    Discriminator(
        _kind_of_list,
        custom_error_type="who",
        custom_error_message="Give exactly one of user_id, users and events",
    ),
]

RatingsBody = Annotated[
    Annotated[RatingsOfPerson, Tag("#user_id")] | Annotated[RatingsOfSession, Tag("#events")],
    Discriminator(
        _kind_of_ratings,
        custom_error_type="who",
        custom_error_message="Give exactly one of user_id and events",
    ),
]
