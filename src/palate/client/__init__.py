"""A typed client of the service: the API as methods, with retries that do no harm.

    with palate.Client("http://127.0.0.1:8000", key) as client:
        client.add_events([palate.client.Event("u-1", "mug-7")])
        client.recommend("u-1", k=10).items

Every event gets its `event_id` here, before the first attempt, so that a retry is stored once whatever was lost.
"""

from palate.client.client import Client
from palate.client.errors import (
    ClientError,
    InvalidRequestError,
    KeyRefusedError,
    RefusedError,
    ServerError,
    UnavailableError,
    UnknownIdError,
)
from palate.client.sending import Retries
from palate.client.values import (
    Item,
    Job,
    Key,
    Knowledge,
    Line,
    Listing,
    Model,
    Person,
    RatingLine,
    RowFault,
    StoredItem,
    Taken,
)
from palate.data.event import Event

__all__ = [
    "Client",
    "ClientError",
    "Event",
    "InvalidRequestError",
    "Item",
    "Job",
    "Key",
    "KeyRefusedError",
    "Knowledge",
    "Line",
    "Listing",
    "Model",
    "Person",
    "RatingLine",
    "RefusedError",
    "Retries",
    "RowFault",
    "ServerError",
    "StoredItem",
    "Taken",
    "UnavailableError",
    "UnknownIdError",
]
