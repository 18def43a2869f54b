"""`/v1/recommendations`, `/v1/items/{id}/similar` and `/v1/predictions`: lists, and ratings foretold."""

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from palate.service.answers import (
    ListAnswer,
    ListsAnswer,
    PredictAnswer,
    SimilarAnswer,
    answer,
    list_object,
    lists_object,
    rows,
)
from palate.service.contract import Running
from palate.service.list_schemas import (
    MAX_K,
    ForPeople,
    ForPerson,
    ForSession,
    ListBody,
    RatingsBody,
    RatingsOfPerson,
    RatingsOfSession,
)
from palate.service.reading import body_of, reader
from palate.service.routing import PathId, Routes


def add_list_routes(routes: Routes, running: Running) -> None:
    """Add the routes for lists."""
    read, read_asked = reader(ListBody), reader(RatingsBody)

    async def recommend(request: Request) -> Response:
        """Make a list for one person, for many, or for a session without an id.

        Give exactly one of `user_id`, `users` (the answer is then `{"lists": […]}`) and `events`. What is shown is
        logged under `recommendation_id`; send that back with the events that follow from it.
        """
        body: ForPerson | ForPeople | ForSession = read(body_of(request))
        made = await running.recommend(body.requests())
        return answer(lists_object(made) if body.many else list_object(made[0]))

    async def similar(
        request: Request,
        item_id: PathId,
        k: Annotated[int, Query(ge=1, le=MAX_K, description="length of the list")] = 10,
    ) -> Response:
        """List the items nearest to one, in the sense that the model has learned."""
        return answer({"items": rows(await running.similar(item_id, k))})

    async def predict(request: Request) -> Response:
        """Say how someone would rate items, as a distribution over the ratings that there are.

        Give exactly one of `user_id` and `events`. The model must have learned from events that rate.
        """
        body: RatingsOfPerson | RatingsOfSession = read_asked(body_of(request))
        made = await running.predict(body.request())
        return answer({"model_id": made.model_id, "items": rows(made.items)})

    routes.add(
        "POST",
        "/v1/recommendations",
        "client",
        recommend,
        body=(ForPerson, ForPeople, ForSession),
        answer=ListAnswer | ListsAnswer,
        tag="lists",
    )
    routes.add(
        "GET",
        "/v1/items/{item_id}/similar",
        "client",
        similar,
        answer=SimilarAnswer,
        tag="lists",
        problems=("not_found", "invalid_request"),
    )
    routes.add(
        "POST",
        "/v1/predictions",
        "client",
        predict,
        body=(RatingsOfPerson, RatingsOfSession),
        answer=PredictAnswer,
        tag="lists",
        problems=("not_found", "refused"),
    )
