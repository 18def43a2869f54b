"""`/v1/users` and `/v1/items`: who and what there is."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from palate.service.answers import (
    EventPage,
    ItemPage,
    JobAnswer,
    PersonAnswer,
    PersonPage,
    RowsAnswer,
    answer,
    event_rows,
    page_object,
    rows,
)
from palate.service.contract import ItemsTaken, Running
from palate.service.errors import Fault, InvalidRequestError
from palate.service.reading import Batch, BatchReader, body_of, numbered
from palate.service.routing import After, Limit, PathId, Routes
from palate.service.schemas import Item, Items, People, Person, to_item, to_person


def add_person_routes(routes: Routes, running: Running) -> None:
    """Add the routes for people."""
    read: BatchReader[Person] = BatchReader(Person, "users")

    async def send_users(request: Request) -> Response:
        """Add or change one person or a batch of up to 1,000.

        Attributes that are not named keep their value; null takes one away.
        """
        batch = read(body_of(request))
        taken = await running.add_people([to_person(row) for row in batch.rows]) if batch.rows else None
        return _taken(batch, taken)

    async def list_users(request: Request, after: After = None, limit: Limit = 100) -> Response:
        """List people with their attributes, by id."""
        return answer(page_object(await running.people(after, limit)))

    async def show_user(request: Request, user_id: PathId) -> Response:
        """Say what is known of a person, and how their taste was learned."""
        person = await running.person(user_id)
        return answer({**person._asdict(), "recent": event_rows(person.recent)})

    async def list_events(request: Request, user_id: PathId, after: After = None, limit: Limit = 100) -> Response:
        """List a person's events in the order in which they were stored."""
        page = await running.events_of(user_id, after, limit)
        return answer({"rows": event_rows(page.rows), "next": page.next})

    async def erase_user(request: Request, user_id: PathId) -> Response:
        """Forget a person: events, attributes, fast weights, lists that they were shown.

        Lists change at once; the job is done when no byte of them is left in the files.
        """
        job = await running.erase(user_id)
        return answer(job._asdict(), 202, {"location": f"/v1/jobs/{job.job_id}"})

    body = (Person, People)
    routes.add("POST", "/v1/users", "service", send_users, body=body, answer=RowsAnswer, tag="people")
    routes.add(
        "GET", "/v1/users", "service", list_users, answer=PersonPage, tag="people", problems=("invalid_request",)
    )
    problems = ("not_found", "invalid_request")
    path = "/v1/users/{user_id}"
    routes.add("GET", path, "service", show_user, answer=PersonAnswer, tag="people", problems=problems)
    routes.add("GET", f"{path}/events", "service", list_events, answer=EventPage, tag="people", problems=problems)
    routes.add("DELETE", path, "service", erase_user, answer=JobAnswer, status=202, tag="people", problems=problems)


def add_item_routes(routes: Routes, running: Running) -> None:
    """Add the routes for items."""
    read: BatchReader[Item] = BatchReader(Item, "items")

    async def send_items(request: Request) -> Response:
        """Add, change or hide one item or a batch of up to 1,000.

        A new item can be listed at once, by its content. Attributes that are not named keep their value; null takes
        one away.
        """
        batch = read(body_of(request))
        taken = await running.add_items([to_item(row) for row in batch.rows]) if batch.rows else None
        return _taken(batch, taken)

    async def list_items(request: Request, after: After = None, limit: Limit = 100) -> Response:
        """List items with their attributes, by id."""
        return answer(page_object(await running.items(after, limit)))

    routes.add("POST", "/v1/items", "service", send_items, body=(Item, Items), answer=RowsAnswer, tag="items")
    routes.add("GET", "/v1/items", "service", list_items, answer=ItemPage, tag="items", problems=("invalid_request",))


def _taken(batch: Batch[Any], taken: ItemsTaken | None) -> Response:
    """What became of a batch; a single row that was not taken is an error of the request."""
    if batch.single and taken is not None and taken.errors:
        raise InvalidRequestError("invalid_request", None, [Fault("", taken.errors[0].message)])
    errors = [*batch.errors, *numbered(batch, taken.errors if taken else ())]
    return answer({"accepted": taken.accepted if taken else 0, "errors": rows(errors)})
