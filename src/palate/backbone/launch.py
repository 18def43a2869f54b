"""One training function, run where there is room: this process, several of them, under torchrun, on a Ray cluster.

A line of `LAUNCHERS` is a place. Each worker finds a process group ready, in which `engine.train` shares every batch
among them. A worker that is killed takes the others with it, and all start again: the function goes on from the last
checkpoint of its folder, which all machines must share.
"""

import importlib
import importlib.util
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from palate import errors
from palate.errors import ConfigError, PalateError


class Job(NamedTuple):
    """What is to run where."""

    function: str
    """module:function, or path/to/file.py:function. Workers import it by this name."""
    args: Mapping[str, Any]
    """Its keyword arguments: plain values that can travel to another process."""
    on: str
    """The place as it was asked for."""
    workers: int
    """How many workers."""
    restarts: int
    """How often all start again after one was killed."""
    storage: Path | None
    """Where Ray keeps its records of the run."""


def launch(
    function: str,
    args: Mapping[str, Any],
    *,
    on: str = "local",
    workers: int = 1,
    restarts: int = 3,
    storage: Path | None = None,
) -> None:
    """Run function(**args) on `workers` workers and return when all are done.

    `on` is local; torchrun, for a program that torchrun has started (local sees that for itself); ray, for the cluster
    that Ray finds or starts here; or ray://host:port, for one elsewhere, which needs the same Palate. `storage` is a
    folder that all machines of the cluster share, for Ray's records (by default ~/ray_results).

    Raises:
        ConfigError: an unknown place or function, fewer than one worker, or Ray is not installed.
        PalateError: what the function raised, of the same class; or workers were killed more than `restarts` times.
    """
    place, _, _ = on.partition("://")
    if place not in LAUNCHERS:
        raise ConfigError(f"launch: on is {on!r}; choose one of: {', '.join(LAUNCHERS)}, or ray://host:port")
    if workers < 1 or restarts < 0:
        raise ConfigError(f"launch: {workers} workers and {restarts} restarts; expected at least 1 and 0")
    if storage is not None and place != "ray":
        raise ConfigError(f"launch: storage is for Ray, and on is {on!r}; leave it out")
    _find(function)
    LAUNCHERS[place](Job(function, dict(args), on, workers, restarts, storage))


def _local(job: Job) -> None:
    if _under_torchrun():
        return _torchrun(job)
    if job.workers == 1:
        _find(job.function)(**job.args)
        return None
    for _ in range(job.restarts + 1):
        fate = _attempt(job)
        if fate is None:
            return None
    raise PalateError(
        f"launch: {fate}, {job.restarts + 1} times in all; look for a lack of memory, or allow more restarts. The last "
        "checkpoint is whole"
    )


def _attempt(job: Job) -> str | None:
    """Start all workers and wait for them; None when all are done, else which was killed and by what.

    Raises:
        PalateError: a worker ended with an error.
    """
    context = multiprocessing.get_context("forkserver")  # PyTorch is imported once; nothing that CUDA needs is forked
    context.set_forkserver_preload(["palate.backbone.parallel"])
    threads = max(1, torch.get_num_threads() // job.workers)
    with tempfile.TemporaryDirectory() as meeting:
        heard, said = zip(*(context.Pipe(duplex=False) for _ in range(job.workers)), strict=True)
        workers: list[BaseProcess] = [
            context.Process(target=_work, args=(job, rank, threads, f"{meeting}/point", said[rank]))
            for rank in range(job.workers)
        ]
        try:
            for worker in workers:
                worker.start()
            for end in said:
                end.close()
            while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
                wait([worker.sentinel for worker in workers if worker.is_alive()])
            codes = [worker.exitcode or 0 for worker in workers]
        finally:
            for worker in workers:
                if worker.pid is not None:
                    worker.kill()
                    worker.join()
    killed = [rank for rank, code in enumerate(codes) if code < 0]
    if killed:  # a worker that lost its partner fails too, which says nothing
        return f"worker {killed[0]} was killed by {signal.Signals(-codes[killed[0]]).name}"
    for rank, code in enumerate(codes):
        if code:
            raise _error_of(heard[rank], rank, code)
    return None


def _work(job: Job, rank: int, threads: int, meeting: str, said: Connection) -> None:
    """The life of one local worker."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(threads)
    dist.init_process_group(_backend(), init_method=f"file://{meeting}", rank=rank, world_size=job.workers)
    try:
        _find(job.function)(**job.args)
    except PalateError as error:
        said.send_bytes(f"{type(error).__name__}\n{error}".encode())
        raise SystemExit(1) from None
    except Exception as error:
        traceback.print_exc()
        said.send_bytes(f"PalateError\nlaunch: worker {rank} failed: {_one_line(error)}; its trace is above".encode())
        raise SystemExit(1) from None
    dist.destroy_process_group()


def _error_of(heard: Connection, rank: int, code: int) -> PalateError:
    try:
        name, _, message = heard.recv_bytes().decode().partition("\n")
    except EOFError:
        return PalateError(f"launch: worker {rank} ended with exit code {code} and no word")
    return _as_error(name, message)


def _as_error(name: str, message: str) -> PalateError:
    kind: type[PalateError] = getattr(errors, name, PalateError)
    return kind(message)


def _torchrun(job: Job) -> None:
    if not _under_torchrun():
        raise ConfigError("launch: on is 'torchrun' and RANK and WORLD_SIZE are not set; start the program by torchrun")
    if job.workers not in (1, int(os.environ["WORLD_SIZE"])):
        raise ConfigError(
            f"launch: {job.workers} workers, and torchrun started {os.environ['WORLD_SIZE']}; say so once"
        )
    dist.init_process_group(_backend())
    try:
        _find(job.function)(**job.args)
    finally:
        dist.destroy_process_group()


def _ray(job: Job) -> None:
    try:
        import ray
        import ray.train.torch
    except ImportError:
        raise ConfigError(f"launch: on is {job.on!r} and Ray is not installed; pip install 'palate[ray]'") from None
    remote = job.on.startswith("ray://")
    mine = not ray.is_initialized()
    if mine:
        ray.init(address=job.on if remote else None, include_dashboard=None if remote else False)
    try:
        # Ray Train wants to be driven from inside the cluster.
        message = ray.get(ray.remote(num_cpus=0)(_fit).remote(job)) if remote else _fit(job)
    finally:
        if mine:
            ray.shutdown()
    if message is not None:
        name, _, text = message.partition("\n")
        raise _as_error(name, text)


def _fit(job: Job) -> str | None:
    """Run Ray Train to its end; class and text of the error that ended it, if one did."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _work_on_ray,
        train_loop_config={"function": job.function, "args": job.args},
        torch_config=TorchConfig(backend=_backend()),
        scaling_config=ScalingConfig(num_workers=job.workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            failure_config=FailureConfig(max_failures=job.restarts),
            storage_path=str(job.storage) if job.storage is not None else None,
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        failures = list(getattr(error, "worker_failures", {}).values())
        for failure in [error, *failures]:
            seen: BaseException | None = failure
            while seen is not None:
                if isinstance(seen, PalateError):
                    return f"{type(seen).__name__}\n{seen}"
                seen = getattr(seen, "_base_exc", None) or seen.__cause__
        seen = failures[0] if failures else error
        reason = _one_line(getattr(seen, "_base_exc", None) or seen)
        return f"PalateError\nlaunch: Ray gave up: {reason}; the last checkpoint is whole"
    return None


def _work_on_ray(config: dict[str, Any]) -> None:
    _find(config["function"])(**config["args"])


def _under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _find(function: str) -> Callable[..., Any]:
    """Import a function by its name.

    Raises:
        ConfigError: there is no such module, file or function.
    """
    home, _, name = function.rpartition(":")
    try:
        if home.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(home).stem, home)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(home)
        found: Callable[..., Any] = getattr(module, name)
    except (ImportError, OSError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"launch: no function {function!r} ({_one_line(error)}); write module:function or file.py:function"
        ) from None
    return found


LAUNCHERS: Mapping[str, Callable[[Job], None]] = {"local": _local, "torchrun": _torchrun, "ray": _ray}
