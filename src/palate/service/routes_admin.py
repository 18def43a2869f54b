"""`/v1/models`, `/v1/retrain`, `/v1/jobs` and `/v1/keys`: what the people who run the server need."""

from starlette.requests import Request
from starlette.responses import Response

from palate.service.answers import (
    JobAnswer,
    KeyAnswer,
    KeysAnswer,
    ModelAnswer,
    ModelsAnswer,
    NewKeyAnswer,
    answer,
    rows,
)
from palate.service.contract import JobOut, Running
from palate.service.reading import body_of, reader
from palate.service.routing import PathId, Routes
from palate.service.schemas import NewKey, Share


def add_model_routes(routes: Routes, running: Running) -> None:
    """Add the routes for models and jobs."""
    read = reader(Share)

    async def list_models(request: Request) -> Response:
        """List the registry of models, newest first."""
        return answer({"models": rows(await running.models())})

    async def promote_model(request: Request, model_id: PathId) -> Response:
        """Serve a model to everyone, or as canary to a share of people.

        Without a body it is everyone. The pointer moves at once or not at all.
        """
        share = read(body_of(request) or b"{}").share
        return answer((await running.promote(model_id, share))._asdict())

    async def roll_back(request: Request) -> Response:
        """Serve the model before again, or end the canary if there is one."""
        return answer((await running.rollback())._asdict())

    async def retrain(request: Request) -> Response:
        """Start training a candidate on all events, in a process of its own."""
        return _job(await running.retrain())

    async def show_job(request: Request, job_id: PathId) -> Response:
        """Say how a job stands."""
        return answer((await running.job(job_id))._asdict())

    problems = ("not_found", "invalid_request")
    routes.add("GET", "/v1/models", "service", list_models, answer=ModelsAnswer, tag="models")
    routes.add(
        "POST", "/v1/models/rollback", "admin", roll_back, answer=ModelAnswer, tag="models", problems=("refused",)
    )
    routes.add(
        "POST",
        "/v1/models/{model_id}/promote",
        "admin",
        promote_model,
        body=(Share,),
        body_required=False,
        answer=ModelAnswer,
        tag="models",
        problems=(*problems, "refused"),
    )
    routes.add(
        "POST", "/v1/retrain", "admin", retrain, answer=JobAnswer, status=202, tag="models", problems=("refused",)
    )
    routes.add("GET", "/v1/jobs/{job_id}", "service", show_job, answer=JobAnswer, tag="server", problems=problems)


def add_key_routes(routes: Routes, running: Running) -> None:
    """Add the routes for keys."""
    read = reader(NewKey)

    async def list_keys(request: Request) -> Response:
        """List all keys, without their secrets."""
        return answer({"keys": rows(await running.keys())})

    async def make_key(request: Request) -> Response:
        """Make a key; the answer shows its secret this once."""
        wanted: NewKey = read(body_of(request))
        made, secret = await running.add_key(wanted.role, wanted.name)
        return answer({**made._asdict(), "key": secret}, 201)

    async def revoke_key(request: Request, key_id: PathId) -> Response:
        """End a key; it opens nothing from now on."""
        return answer((await running.revoke_key(key_id))._asdict())

    routes.add("GET", "/v1/keys", "admin", list_keys, answer=KeysAnswer, tag="keys")
    routes.add("POST", "/v1/keys", "admin", make_key, body=(NewKey,), answer=NewKeyAnswer, status=201, tag="keys")
    routes.add(
        "DELETE",
        "/v1/keys/{key_id}",
        "admin",
        revoke_key,
        answer=KeyAnswer,
        tag="keys",
        problems=("not_found", "invalid_request"),
    )


def _job(job: JobOut) -> Response:
    return answer(job._asdict(), 202, {"location": f"/v1/jobs/{job.job_id}"})
