"""The API as methods."""

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from palate.client.errors import UnavailableError
from palate.client.sending import Retries, Sender
from palate.client.values import (
    Exploration,
    Item,
    Job,
    Key,
    Knowledge,
    Line,
    Listing,
    Model,
    Person,
    RatingLine,
    Role,
    RowFault,
    StoredItem,
    Taken,
    Value,
    given,
    read,
    read_event,
    read_knowledge,
    read_listing,
    read_rating,
)
from palate.data.event import Event
from palate.errors import ConfigError

_BATCH = 1000
_IN_SESSION = ("item_id", "event_type", "timestamp", "weight")
"""The fields of an event of somebody without an id."""


class Client:
    """Talks to one service; use it as a context manager, or call `close`. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: such as "http://127.0.0.1:8000".
            key: an API key.
            transport, sleep, rng: of the connection, of waiting, of its jitter; for tests.

        Raises:
            ConfigError: the address or the key cannot be used.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError("url: expected an address that begins with http:// or https://")
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError("key: expected the text that `palate serve` or `palate keys add` printed")
        retries = retries or Retries()
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"authorization": f"Bearer {key}"},
            timeout=retries.timeout,
            transport=transport,
        )
        self._sender = Sender(self._http, retries, sleep, rng or random.Random())

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def add_events(self, events: Sequence[Event]) -> Taken:
        """Store events, any number of them; those accepted are durable and part of the next list.

        Raises:
            ClientError: here and in all methods, one of its subclasses.
        """
        # The ids are made before the first attempt: a retry sends the same ones.
        rows = [given(event._replace(event_id=event.event_id or uuid.uuid4().hex)) for event in events]
        return self._send_rows("/v1/events", "events", rows)

    def add_people(self, people: Sequence[Person]) -> Taken:
        """Add or change people, any number of them."""
        return self._send_rows("/v1/users", "users", [person._asdict() for person in people])

    def add_items(self, items: Sequence[Item]) -> Taken:
        """Add, change or hide items, any number of them."""
        return self._send_rows("/v1/items", "items", [given(item) for item in items])

    def recommend(
        self,
        user_id: str | None = None,
        k: int = 10,
        *,
        session: Sequence[Event] | None = None,
        profile: Mapping[str, Value] | None = None,
        exclude: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,
        diversity: float = 0.0,
        explore: Exploration = "none",
        scenario: str = "default",
        include_seen: bool = False,
        parts: bool = False,
    ) -> Listing:
        """Make a list for a person, or for the events of someone without an id.

        Args:
            session: events of an anonymous session, oldest first; give it instead of `user_id`.
            profile: what is known of the anonymous person.
            filter: conditions on items, such as `{"all": [{"attribute": "price", "op": "le", "value": 20}]}`.
            parts: whether each line says what every scorer adds to its score.
        """
        if (user_id is None) == (session is None):
            raise ConfigError("recommend: give either user_id or session")
        options = _options(k, exclude, filter, diversity, explore, scenario, include_seen, parts)
        return read_listing(self._ask("POST", "/v1/recommendations", {**_who(user_id, session, profile), **options}))

    def recommend_many(
        self,
        user_ids: Sequence[str],
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,
        diversity: float = 0.0,
        explore: Exploration = "none",
        scenario: str = "default",
        include_seen: bool = False,
        parts: bool = False,
    ) -> list[Listing]:
        """Make lists for many people, in their order; people times `k` is at most 10,000."""
        options = _options(k, exclude, filter, diversity, explore, scenario, include_seen, parts)
        answer = self._ask("POST", "/v1/recommendations", {"users": list(user_ids), **options})
        return [read_listing(each) for each in answer["lists"]]

    def similar(self, item_id: str, k: int = 10) -> list[Line]:
        """List the items nearest to one."""
        answer = self._ask("GET", f"/v1/items/{_in_path(item_id)}/similar", parameters={"k": k})
        return [read(Line, line) for line in answer["items"]]

    def predict(
        self,
        items: Sequence[str],
        user_id: str | None = None,
        *,
        session: Sequence[Event] | None = None,
        profile: Mapping[str, Value] | None = None,
    ) -> list[RatingLine]:
        """Say how a person, or someone without an id, would rate items, in their order.

        Args:
            items: ids of the items asked about.
            session: events of someone without an id, oldest first; give it instead of `user_id`. Those that rate count.
            profile: what is known of someone without an id.
        """
        if (user_id is None) == (session is None):
            raise ConfigError("predict: give either user_id or session")
        answer = self._ask("POST", "/v1/predictions", {**_who(user_id, session, profile), "items": list(items)})
        return [read_rating(line) for line in answer["items"]]

    def people(self) -> Iterator[Person]:
        """All people, by id; pages are fetched as they are needed."""
        return (read(Person, row) for row in self._pages("/v1/users"))

    def items(self) -> Iterator[StoredItem]:
        """All items, by id; pages are fetched as they are needed."""
        return (read(StoredItem, row) for row in self._pages("/v1/items"))

    def events_of(self, user_id: str) -> Iterator[Event]:
        """A person's events without their sessions and lists, oldest first; pages are fetched as they are needed."""
        return (read_event(user_id, row) for row in self._pages(f"/v1/users/{_in_path(user_id)}/events"))

    def person(self, user_id: str) -> Knowledge:
        """What is known of a person, and how it was learned."""
        answer = self._ask("GET", f"/v1/users/{_in_path(user_id)}")
        return read_knowledge(answer)

    def erase(self, user_id: str) -> Job:
        """Forget a person; `wait` for the job to know that the files are clean."""
        return read(Job, self._ask("DELETE", f"/v1/users/{_in_path(user_id)}", again=False))

    def job(self, job_id: str) -> Job:
        """How a job stands."""
        return read(Job, self._ask("GET", f"/v1/jobs/{_in_path(job_id)}"))

    def wait(self, job: Job, timeout: float = 60.0, every: float = 0.5) -> Job:
        """Wait until a job has ended, well or not.

        Raises:
            UnavailableError: it has not within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while job.status not in ("done", "failed"):
            if time.monotonic() >= end:
                raise UnavailableError(f"the job {job.job_id} is still {job.status} after {timeout:g} s")
            self._sleep(every)
            job = self.job(job.job_id)
        return job

    def retrain(self) -> Job:
        """Start training a candidate."""
        return read(Job, self._ask("POST", "/v1/retrain", again=False))

    def models(self) -> list[Model]:
        """The registry, newest first."""
        return [read(Model, row) for row in self._ask("GET", "/v1/models")["models"]]

    def promote(self, model_id: str, share: float = 1.0) -> Model:
        """Serve a model to everyone, or as canary to a share of people."""
        return read(Model, self._ask("POST", f"/v1/models/{_in_path(model_id)}/promote", {"share": share}, again=False))

    def rollback(self) -> Model:
        """Serve the model before again, or end the canary."""
        return read(Model, self._ask("POST", "/v1/models/rollback", again=False))

    def keys(self) -> list[Key]:
        """All keys, without their secrets."""
        return [read(Key, row) for row in self._ask("GET", "/v1/keys")["keys"]]

    def add_key(self, role: Role, name: str) -> tuple[Key, str]:
        """Make a key; the secret is returned this once."""
        answer = self._ask("POST", "/v1/keys", {"role": role, "name": name}, again=False)
        secret: str = answer["key"]
        return read(Key, answer), secret

    def revoke_key(self, key_id: str) -> Key:
        """End a key."""
        return read(Key, self._ask("DELETE", f"/v1/keys/{_in_path(key_id)}"))

    def metrics(self) -> str:
        """The figures in the text format of Prometheus."""
        text: str = self._sender.request("GET", "/v1/metrics").text
        return text

    def ready(self) -> bool:
        """Whether lists can be made now; asked once, without retries."""
        try:
            return self._http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _send_rows(self, path: str, name: str, rows: list[dict[str, Any]]) -> Taken:
        accepted = duplicates = 0
        errors: list[RowFault] = []
        for start in range(0, len(rows), _BATCH):
            answer = self._ask("POST", path, {name: rows[start : start + _BATCH]})
            accepted += answer["accepted"]
            duplicates += answer.get("duplicates", 0)
            errors += [RowFault(each["row"] + start, each["code"], each["message"]) for each in answer["errors"]]
        return Taken(accepted, duplicates, tuple(errors))

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        after = None
        while True:
            parameters = {"limit": _BATCH, **({} if after is None else {"after": after})}
            page = self._ask("GET", path, parameters=parameters)
            yield from page["rows"]
            after = page["next"]
            if after is None:
                return

    def _ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        again: bool = True,
    ) -> dict[str, Any]:
        answer: dict[str, Any] = self._sender.request(method, path, body, parameters, again).json()
        return answer


def _in_path(value: str) -> str:
    quoted = quote(value, safe="")
    # "." and ".." would be taken for steps in the path.
    return quoted.replace(".", "%2E") if quoted.strip(".") == "" else quoted


def _who(user_id: str | None, session: Sequence[Event] | None, profile: Mapping[str, Value] | None) -> dict[str, Any]:
    """The fields that say whom a request is about."""
    if user_id is not None:
        return {"user_id": user_id}
    rows = [{name: value for name, value in given(event).items() if name in _IN_SESSION} for event in session or ()]
    return {"events": rows, "profile": dict(profile or {})}


def _options(
    k: int,
    exclude: Sequence[str],
    filter: Mapping[str, Any] | None,
    diversity: float,
    explore: str,
    scenario: str,
    include_seen: bool,
    parts: bool,
) -> dict[str, Any]:
    options: dict[str, Any] = {"k": k, "exclude": list(exclude), "diversity": diversity, "explore": explore}
    options |= {"scenario": scenario, "include_seen": include_seen, "parts": parts}
    return options if filter is None else {**options, "filter": dict(filter)}
