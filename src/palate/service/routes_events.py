"""`/v1/events`: what people did."""

from starlette.requests import Request
from starlette.responses import Response

from palate.data.event import Event
from palate.service.answers import EventsAnswer, answer, rows
from palate.service.contract import Running
from palate.service.errors import Fault, InvalidRequestError
from palate.service.reading import BatchReader, body_of, numbered
from palate.service.routing import Routes
from palate.service.schemas import EVENT_BODY, Events, SentEvent


def add_event_routes(routes: Routes, running: Running) -> None:
    """Add the routes for events."""
    read: BatchReader[Event] = BatchReader(SentEvent, "events")

    async def send_events(request: Request) -> Response:
        """Store one event or a batch of up to 1,000.

        Answered when every accepted event is durable and part of what the next list reads. A row of a batch that is
        malformed is named in `errors`; the others are stored. An `event_id` that was stored before changes nothing.
        """
        batch = read(body_of(request))
        taken = await running.add_events(batch.rows) if batch.rows else None
        if batch.single and taken is not None and taken.errors:
            fault = taken.errors[0]
            raise InvalidRequestError("invalid_request", None, [Fault("", fault.message)])
        errors = [*batch.errors, *numbered(batch, taken.errors if taken else ())]
        counts = (taken.accepted, taken.duplicates) if taken else (0, 0)
        return answer({"accepted": counts[0], "duplicates": counts[1], "errors": rows(errors)})

    routes.add(
        "POST", "/v1/events", "client", send_events, body=(EVENT_BODY, Events), answer=EventsAnswer, tag="events"
    )
