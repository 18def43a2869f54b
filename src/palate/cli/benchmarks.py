"""Measures on public protocols: `palate bench …`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from palate.cli.common import (
    JsonOption,
    bench,
    command,
)
from palate.cli.outputs import check_files, check_folder
from palate.data.files import write_atomically
from palate.evaluation.protocols.present import protocol_page, protocol_tables, write_protocol_report
from palate.evaluation.protocols.run import run_protocol
from palate.evaluation.protocols.table import PROTOCOLS, find_protocol
from palate.evaluation.sequential.cold_run import ColdConfig, run_cold
from palate.evaluation.sequential.data import SEQUENCE_DATA, open_sequences
from palate.evaluation.sequential.present import cold_table, sequential_page, sequential_table
from palate.evaluation.sequential.run import run_sequential


@command("meta", bench)
def bench_meta(
    protocol: Annotated[str, typer.Option(help="One of melu, tanp, hire, lastfm, metarec; or all.")] = "all",
    data: Annotated[Path, typer.Option(help="Folder of the data sets; see docs/protocols.md.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder for PROTOCOL.json and PROTOCOL.html.")] = Path("palate-bench"),
    draws: Annotated[int | None, typer.Option(min=1, help="Seeds. Default: those of a full run.")] = None,
    learners: Annotated[str | None, typer.Option(help="Learners, with commas between. Default: every one.")] = None,
    page: Annotated[Path | None, typer.Option(help="Also write all tables to this Markdown file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge every meta-learner on public few-shot protocols, beside the baselines and the figures known elsewhere.

    Trains on one thread; melu takes about 25 minutes, lastfm five.
    """
    names = list(PROTOCOLS) if protocol == "all" else [protocol]
    check_files([out / f"{name}.{form}" for name in names for form in ("json", "html")], "--out")
    check_files([] if page is None else [page], "--page")
    if len(names) > 1:  # a data set that is not there is found before the first protocol, not after it
        for name in names:
            find_protocol(name).open(data, 1)
    chosen = None if learners is None else [name for name in learners.split(",") if name]
    told = Console(stderr=True, quiet=as_json, highlight=False)

    def say(line: str) -> None:
        told.print(line, style="dim", soft_wrap=True)

    runs = []
    for name in names:
        results = run_protocol(name, data, num_draws=draws, learners=chosen, say=say)
        write_atomically(out / f"{name}.json", json.dumps(results, indent=1).encode())
        write_protocol_report(results, out / f"{name}.html")
        runs.append(results)
        if not as_json:
            for table in protocol_tables(results):
                Console().print(table)
    if page is not None:
        write_atomically(page, protocol_page(runs).encode())
    if as_json:
        print(json.dumps(runs))
    else:
        Console().print(f"Reports: {out}")


@command("sequence", bench)
def bench_sequence(
    dataset: Annotated[str, typer.Option(help="One of ml-1m, beauty, sports, toys; or all.")] = "all",
    data: Annotated[Path, typer.Option(help="Folder of the data sets; see docs/sequential.md.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder for the ranks of each model and seed.")] = Path("palate-bench"),
    models: Annotated[
        str | None, typer.Option(help='Models, with semicolons between; "" for what OUT holds. Default: every one.')
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often a model that depends on chance is trained.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes side by side, one thread each.")] = 1,
    page: Annotated[Path | None, typer.Option(help="Also write all tables to this Markdown file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge the large model on public sequences, leave one out and full ranking, beside baselines and known figures.

    Palate on ml-1m takes about an hour of one core for each seed, the others less; a run that is stopped goes on.
    """
    names = list(SEQUENCE_DATA) if dataset == "all" else [dataset]
    check_folder(out, "--out")
    check_files([] if page is None else [page], "--page")
    if len(names) > 1:
        for name in names:
            open_sequences(name, data)
    chosen = None if models is None else [name.strip() for name in models.split(";") if name.strip()]
    told = Console(stderr=True, quiet=as_json, highlight=False)

    def say(line: str) -> None:
        told.print(line, style="dim", soft_wrap=True)

    runs = []
    for name in names:
        runs.append(run_sequential(name, data, out, models=chosen, num_seeds=seeds, workers=workers, say=say))
        if not as_json:
            Console().print(sequential_table(runs[-1]))
    if page is not None:
        write_atomically(page, sequential_page(runs).encode())
    if as_json:
        print(json.dumps(runs))


@command("cold", bench)
def bench_cold(
    dataset: Annotated[str, typer.Option(help="One of ml-1m, beauty, sports, toys.")] = "ml-1m",
    data: Annotated[Path, typer.Option(help="Folder of the data sets; see docs/sequential.md.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder for DATASET-cold-SEED.json and checkpoints.")] = Path(
        "palate-bench"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the split and of every random draw.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train side by side.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Judge the recommender on cold people, after 1 to 100 events, beside its backbone alone and the baselines.

    Takes about an hour of one core on ml-1m; a run that is stopped goes on.
    """
    check_files([out / f"{dataset}-cold-{seed}.json"], "--out")
    told = Console(stderr=True, quiet=as_json, highlight=False)
    found = run_cold(
        open_sequences(dataset, data),
        ColdConfig(),
        seed=seed,
        folder=out / "checkpoints" / f"{dataset}-cold-{seed}",
        say=lambda line: told.print(line, style="dim", soft_wrap=True),
        workers=workers,
    )
    write_atomically(out / f"{dataset}-cold-{seed}.json", json.dumps(found, indent=1).encode())
    if as_json:
        print(json.dumps(found))
        return
    for part, title in (("next", "the next item"), ("later", "all later items")):
        Console().print(cold_table(found, part, title))
