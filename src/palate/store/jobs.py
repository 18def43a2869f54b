"""Work in the background: what it is, how far it came, how it ended."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, insert, select, update

from palate.store.paging import Page, read_page
from palate.store.schema import jobs

Status = Literal["queued", "running", "done", "failed"]


class Job(NamedTuple):
    """One piece of work."""

    job_id: str
    kind: str
    status: Status
    subject: str
    """What it is about; never the id of someone who is to be forgotten."""
    progress: Mapping[str, Any]
    error: str | None
    created_at: float
    updated_at: float


_JOBS = select(*(jobs.c[name] for name in Job._fields))


def add(connection: Connection, job_id: str, kind: str, now: float, subject: str = "") -> Job:
    """Note work that is to be done."""
    job = Job(job_id, kind, "queued", subject, {}, None, now, now)
    connection.execute(insert(jobs), job._asdict())
    return job


def move(
    connection: Connection,
    job_id: str,
    status: Status,
    now: float,
    *,
    progress: Mapping[str, Any] | None = None,
    error: str | None = None,
) -> Job | None:
    """Note how far work came; progress not given stays. Returns the job; None: there is none of that id."""
    values: dict[str, Any] = {"status": status, "error": error, "updated_at": now}
    if progress is not None:
        values["progress"] = dict(progress)
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**values))
    return read(connection, job_id)


def read(connection: Connection, job_id: str) -> Job | None:
    """Return a job; None: there is none of that id."""
    row = connection.execute(_JOBS.where(jobs.c.job_id == job_id)).one_or_none()
    return None if row is None else Job(*row)


def unfinished(connection: Connection, kind: str | None = None) -> list[Job]:
    """Return the jobs that are queued or running, of one kind or of all, oldest first: after a crash, what is left."""
    query = _JOBS.where(jobs.c.status.in_(["queued", "running"]))
    if kind is not None:
        query = query.where(jobs.c.kind == kind)
    return [Job(*row) for row in connection.execute(query.order_by(jobs.c.created_at, jobs.c.job_id))]


def page(connection: Connection, after: str | None, limit: int) -> Page:
    """Return some jobs as rows with the fields of `Job`, in the order of their ids."""
    return read_page(connection, _JOBS, jobs.c.job_id, after, limit)
