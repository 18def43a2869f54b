"""From the bytes of a body to checked values: parsed once, validated once.

In a batch each row is validated on its own, so that a malformed one does not take its neighbours along.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from palate.data.event import Event
from palate.service import list_schemas, schemas
from palate.service.contract import RowError
from palate.service.errors import Fault, InvalidRequestError
from palate.service.schemas import MAX_ROWS, Item, Person

_JSON: Final = re.compile(rb"application/([\w.+-]+\+)?json\s*(;|$)", re.IGNORECASE)
Row = TypeVar("Row", Event, Person, Item)
Model = TypeVar("Model")


@dataclass(frozen=True)
class Batch(Generic[Row]):
    """The rows of a request that are well formed, and what is wrong with the others."""

    rows: list[Row]
    numbers: list[int]
    """Of each row, its place in the request, from 0."""
    errors: list[RowError]
    single: bool
    """Whether the request was a row and not a list of them."""


class BatchReader(Generic[Row]):
    """Reads one row or a batch of them, `{"NAME": [row, …]}`."""

    def __init__(self, row: Any, name: str) -> None:
        """Take what pydantic reads as a row, and the name of the list."""
        self._name = name
        self._validate: Callable[[object], Row] = TypeAdapter(row).validator.validate_python

    def __call__(self, body: bytes) -> Batch[Row]:
        """Validate row by row.

        Raises:
            InvalidRequestError: it is not JSON, not a batch, or a single row is malformed.
        """
        value = parse(body)
        if not isinstance(value, dict) or self._name not in value:
            try:
                return Batch([self._validate(value)], [0], [], True)
            except ValidationError as error:
                raise _invalid(error) from None
        given = value[self._name]
        if not isinstance(given, list) or not 1 <= len(given) <= MAX_ROWS or len(value) > 1:
            fault = Fault(self._name, f"expected a list of 1 to {MAX_ROWS} rows, and no field beside it")
            raise InvalidRequestError("invalid_request", None, [fault])
        batch: Batch[Row] = Batch([], [], [], False)
        for number, row in enumerate(given):
            try:
                batch.rows.append(self._validate(row))
                batch.numbers.append(number)
            except ValidationError as error:
                first = wrong_fields(error)[0]
                batch.errors.append(RowError(number, "invalid", f"{first.where or 'row'}: {first.message}"))
        return batch


def numbered(batch: Batch[Any], errors: Sequence[RowError]) -> list[RowError]:
    """Errors of rows that were passed on, by their places in the request."""
    return [error._replace(row=batch.numbers[error.row]) for error in errors]


def body_of(request: Request) -> bytes:
    """The body that the gate has read.

    Raises:
        InvalidRequestError: it says that it is something else than JSON.
    """
    for name, value in request.scope["headers"]:
        if name == b"content-type" and not _JSON.match(value):
            raise InvalidRequestError("not_json")
    body: bytes = request.scope["palate.body"]
    return body


def parse(body: bytes) -> object:
    """The JSON value of a body.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        return from_json(body, allow_inf_nan=False, cache_strings="keys")  # ids are not to stay in a cache
    except ValueError as error:
        # The parser's words name a position and what was expected there, never what it saw.
        raise InvalidRequestError("malformed_json", f"Not JSON: {error}.") from None


def reader(model: Any) -> Callable[[bytes], Any]:
    """A function that reads a body as `model`; it raises InvalidRequestError."""
    validate = TypeAdapter(model).validator.validate_python

    def read(body: bytes) -> Any:
        try:
            return validate(parse(body))
        except ValidationError as error:
            raise _invalid(error) from None

    return read


def wrong_fields(error: ValidationError) -> list[Fault]:
    """What is wrong and where, in words that hold nothing of the input: names that the caller made up become `*`."""
    return [
        Fault(where(fault["loc"]), fault["msg"].removeprefix("Value error, "))
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]


_PARAMETERS: Final = (
    "body",
    "path",
    "query",
    "after",
    "limit",
    "k",
    "user_id",
    "item_id",
    "model_id",
    "job_id",
    "key_id",
)
_NAMES: Final = frozenset((*_PARAMETERS, *Event._fields)) | frozenset(
    name
    for module in (schemas, list_schemas)
    for model in vars(module).values()
    if isinstance(model, type) and issubclass(model, BaseModel)
    for name in model.model_fields
)


def where(location: tuple[int | str, ...]) -> str:
    """A path of known names and numbers."""
    named = [part for part in location if isinstance(part, int) or not part.startswith("#")]  # "#…": our tags
    return "/".join(str(part) if isinstance(part, int) or part in _NAMES else "*" for part in named[:12])


def _invalid(error: ValidationError) -> InvalidRequestError:
    return InvalidRequestError("invalid_request", None, wrong_fields(error))
