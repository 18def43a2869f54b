"""The command line: each command is parse → one library call → print."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import polars as pl
import torch
import typer
from rich.console import Console
from rich.table import Table

import palate
from palate.backbone.devices import find_device
from palate.backbone.item_tables import ItemTableConfig
from palate.backbone.next_item import LossConfig
from palate.backbone.plan import PlanConfig, make_plan
from palate.backbone.plan_tables import plan_json, plan_tables
from palate.backbone.sizes import find_size
from palate.config import Config, DataConfig, EvaluationConfig, read_config
from palate.data.dataset import Dataset
from palate.data.files import write_atomically
from palate.data.log import require_columns, validate_interactions, validate_items
from palate.data.tables import csv_table, parquet_table
from palate.encoders.text import TextConfig, encode_texts
from palate.errors import ConfigError, DataError, ModelError, PalateError
from palate.evaluation.protocols.present import protocol_page, protocol_tables, write_protocol_report
from palate.evaluation.protocols.run import run_protocol
from palate.evaluation.protocols.table import PROTOCOLS
from palate.evaluation.report import few_shot_table, headline, write_report
from palate.evaluation.sequential.cold_run import ColdConfig, run_cold
from palate.evaluation.sequential.data import SEQUENCE_DATA, open_sequences
from palate.evaluation.sequential.present import cold_table, sequential_page, sequential_table
from palate.evaluation.sequential.run import run_sequential
from palate.pretrain import PretrainConfig, pretrain, read_pretrain_config, write_log
from palate.progress import Reporter
from palate.recommend import Recommendation, Recommender

DEMO = Config(data=DataConfig(bundled="online-retail"), evaluation=EvaluationConfig(cut="2011-09-01"))
EXAMPLE_CONFIG = """\
seed = 0
[data]
interactions = "events.csv"      # user_id,item_id,timestamp[,event_type,weight]
items = "items.csv"              # item_id,title[,price,brand,…]
columns = { customer = "user_id" }
[evaluation]
cut = "2026-01-01"               # train before, judge after
[meta]
learner = "ridge"                # or "laplace", "maml", "anil", "meta-sgd", …: see docs/meta-learning.md
"""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Palate: recommendations that fit a person after a handful of events.\n\n"
    "Start with [bold]palate demo[/], then [bold]palate recommend --user 12748[/].",
)
bench = typer.Typer(no_args_is_help=True, help="Measure Palate on public protocols.")
app.add_typer(bench, name="bench")
Arguments = ParamSpec("Arguments")
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout and nothing else.")]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Model folder. Default: the one that was trained last.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that train side by side. Default: one a core.")
]


def home() -> Path:
    """Where models go by default: $PALATE_HOME, or ~/.palate."""
    return Path(os.environ.get("PALATE_HOME") or Path.home() / ".palate")


def find_model(folder: Path | None) -> Recommender:
    """Load the named model, or the one that was trained last."""
    if folder is None:
        pointer = home() / "current"
        if not pointer.exists():
            raise ModelError(f"{pointer}: no model has been trained yet; run `palate demo`, or pass --model FOLDER")
        folder = Path(pointer.read_text(encoding="utf-8").strip())
    return Recommender.load(folder)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what Palate raises on purpose into one line on stderr and exit code 2."""
    try:
        yield
    except PalateError as error:
        print(f"palate: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from None


def command(name: str, group: typer.Typer = app) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Register a command with the common handling of errors."""

    def register(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
        @wraps(function)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            with one_line_errors():
                function(*args, **kwargs)

        group.command(name)(run)
        return run

    return register


@command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html and results.json.")] = Path("palate-demo"),
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the main job on the bundled Online Retail data, start to finish.

    Cleans 541,909 real transactions, trains on everything before 2011-09-01, judges the model on the customers who came
    later beside six baselines, and shows three of them their lists. About three minutes on two cores.
    """
    config = replace(DEMO, seed=seed)
    results = _train_and_judge(config, None, _model_folder("online-retail"), out, workers, as_json)
    if as_json:
        print(json.dumps(results))
        return
    console = Console()
    for customer in results["customers"]:
        _print_customer(console, customer)
    console.print("Next: [bold]palate recommend --user 12748[/], or [bold]palate recommend --events FILE.csv[/]")


@command("train")
def train(
    config: Annotated[Path, typer.Option(help="TOML file; every setting that it leaves out has a default.")],
    out: Annotated[Path | None, typer.Option(help="Model folder. Default: ~/.palate/models/NAME.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html and results.json, if the config sets evaluation.cut.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints: an interrupted run goes on from there.")
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model on your data.

    With evaluation.cut set, it learns from the events before the cut alone and is judged on the people after it;
    without, it learns from everything.
    """
    settings = read_config(config)
    folder = out or _model_folder(config.stem)
    results = _train_and_judge(settings, config.parent, folder, report, workers, as_json, resume)
    if as_json:
        print(json.dumps(results))


@command("evaluate")
def evaluate(
    model: ModelOption = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file whose [data] to judge on. Default: the data of the model.")
    ] = None,
    cut: Annotated[str | None, typer.Option(help="ISO time. Default: the cut that the model was trained to.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and results.json.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a model on people that it has never seen: the few-shot curve, with intervals, beside the baselines."""
    torch.set_num_threads(1)  # repeats are bit-identical
    recommender = find_model(model)
    source = read_config(config).data if config else recommender.config.data
    reporter = _reporter(as_json)
    dataset = _open(source, config.parent if config else None, reporter)
    results = palate.evaluate(recommender, dataset, cut, reporter=reporter)
    _show(results, out, as_json)
    if as_json:
        print(json.dumps(results))


@command("recommend")
def recommend(
    user: Annotated[str | None, typer.Option(help="Id of a person in training.")] = None,
    events: Annotated[
        Path | None, typer.Option(help="CSV or Parquet of one person's events; only item_id is needed.")
    ] = None,
    items: Annotated[str | None, typer.Option(help="Item ids, oldest first, separated by commas.")] = None,
    k: Annotated[int, typer.Option("-k", help="Length of the list.")] = 10,
    profile: Annotated[list[str] | None, typer.Option(help="name=value, repeatable, such as country=France.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Item id to leave out, repeatable.")] = None,
    include_seen: Annotated[bool, typer.Option(help="Also list what the person has already chosen.")] = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the best items for a person, known or not.

    Nothing of the person but --events is needed: the model adapts to them on the spot. With none of --user, --events
    and --items the list is the one for a newcomer (with --profile, for one of whom that is known).
    """
    if sum(value is not None for value in (user, events, items)) > 1:
        raise ConfigError("give one of --user, --events and --items")
    attributes: dict[str, object] = {}
    for pair in profile or []:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--profile {pair!r}: expected name=value, such as country=France")
        attributes[name] = value
    torch.set_num_threads(1)
    recommender = find_model(model)
    who: Any = []
    if user is not None:
        who = user
    elif events is not None:
        who = palate.read_events(events)
    elif items is not None:
        who = [item.strip() for item in items.split(",") if item.strip()]
    try:
        lines = recommender.recommend(
            who, k, profile=attributes or None, exclude=exclude or (), include_seen=include_seen
        )
    except DataError as error:
        # The library speaks of "events"; whoever typed a file name should read it again.
        raise DataError(str(error).replace("events:", f"{events or '--items'}:", 1)) from None
    _print_list(lines, as_json)


@command("similar")
def similar(
    item: Annotated[str, typer.Argument(help="Item id.")],
    k: Annotated[int, typer.Option("-k", help="Length of the list.")] = 10,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the items most similar to one, in the sense that the model has learned."""
    _print_list(find_model(model).similar_items(item, k), as_json)


@command("config")
def show_config(as_json: JsonOption = False) -> None:
    """Print an example palate.toml (with --json: every setting and its default)."""
    print(json.dumps(Config().to_dict(), indent=2) if as_json else EXAMPLE_CONFIG, end="" if not as_json else "\n")


@command("plan")
def plan(
    size: Annotated[str, typer.Option(help="One of tiny, small, base, large, xl: 1M to 10B parameters beside items.")],
    items: Annotated[str, typer.Option(help="Items of the catalogue, such as 50000 or 1e8.")],
    devices: Annotated[str, typer.Option(help="How many devices share the work.")] = "1",
    device: Annotated[str, typer.Option(help="One of cpu (measured here), a100, h100, h200.")] = "h100",
    tokens: Annotated[str, typer.Option(help="Tokens to train on; 0: 20 for each parameter beside items.")] = "0",
    batch: Annotated[str, typer.Option(help="Tokens that a device reads in one step.")] = "16384",
    events: Annotated[str, typer.Option(help="Events of a person that are read.")] = "200",
    block: Annotated[str, typer.Option(help="attention or hstu.")] = "attention",
    loss: Annotated[
        str | None,
        typer.Option(help="full, sampled, gbce or bpr. Default: full up to a million items, sampled beyond."),
    ] = None,
    negatives: Annotated[
        str | None, typer.Option(help="Items that a loss other than full draws in a step. Default: 512.")
    ] = None,
    table: Annotated[str, typer.Option(help="Item table: full, quotient, hashed or semantic.")] = "full",
    compression: Annotated[
        str | None, typer.Option(help="How many times smaller than full the item table is, for the other kinds.")
    ] = None,
    content: Annotated[str, typer.Option(help="Content features of an item.")] = "0",
    ema: Annotated[bool, typer.Option(help="Keep averaged weights too.")] = False,
    flops: Annotated[
        str | None, typer.Option(help="FLOP/s of a device at its peak, such as 3e14. Default: its data sheet's.")
    ] = None,
    mfu: Annotated[float, typer.Option(help="Share of that peak that training reaches.")] = 0.35,
    as_json: JsonOption = False,
) -> None:
    """Say what training a model would take: parameters, operations, memory of each device, time.

    The real model is built without memory and one step of it rehearsed on tensors without data; see docs/scaling.md.
    """
    torch.set_num_threads(1)
    num_items = _whole("--items", items)
    kind = loss or ("full" if num_items <= 1_000_000 else "sampled")
    # An option that the loss or the table does not read is only refused when it was given.
    drawn: dict[str, Any] = {} if negatives is None else {"num_negatives": _whole("--negatives", negatives)}
    read = LossConfig(kind, **drawn)
    shared = {} if compression is None else {"compression": _whole("--compression", compression)}
    item_table = ItemTableConfig(table, **shared)
    model = replace(
        find_size(size), block=block, max_events=_whole("--events", events), loss=read, item_table=item_table
    )
    work = PlanConfig(
        num_items,
        _whole("--devices", devices),
        _whole("--batch", batch),
        _whole("--tokens", tokens),
        _whole("--content", content),
        ema,
        mfu,
    )
    machine = find_device(device)
    if flops is not None:
        machine = machine._replace(flops=float(_whole("--flops", flops)))
        if machine.flops <= 0:
            raise ConfigError(f"--flops {flops!r}: it must be above 0")
    made = make_plan(model, work, machine)
    if as_json:
        print(json.dumps(plan_json(made)))
        return
    console = Console(highlight=False)
    for part in plan_tables(made):
        console.print(part, "", sep="\n")


@command("events")
def events(
    log: Annotated[Path, typer.Argument(help="CSV or Parquet of events: user_id, item_id, timestamp.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("events"),
    items: Annotated[Path | None, typer.Option(help="CSV or Parquet of items: item_id and a text.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Column of the items that is read as content (default: title).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write events as flat columns that training maps into memory, with the items' texts encoded."""
    interactions = validate_interactions(_read_table(log), source=str(log))
    content = None
    if items is None and text is not None:
        raise ConfigError("--text names a column of the items, and there are none; give --items FILE too")
    if items is not None:
        text = text or "title"
        catalogue = validate_items(_read_table(items), source=str(items))
        require_columns(catalogue, (text,), source=str(items))
        vectors = encode_texts(catalogue[text].cast(pl.String).fill_null("").to_list(), TextConfig())
        content = dict(zip(catalogue["item_id"].to_list(), vectors.numpy(), strict=True))
    written = write_log(interactions, out, content)
    num_items = int(written.items.max()) + 1
    if as_json:
        counts = {"events": len(written), "people": written.num_users, "items": num_items, "folder": str(out)}
        print(json.dumps(counts))
    else:
        Console(highlight=False).print(
            f"{len(written):,} events of {written.num_users:,} people with {num_items:,} items in {out}"
        )


@command("pretrain")
def pretrain_model(
    events: Annotated[Path, typer.Argument(help="Folder that `palate events` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of checkpoints and of the model.")] = Path("model"),
    config: Annotated[
        Path | None, typer.Option(help="TOML file with [model], [batches] and [training]; see docs/large-model.md.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="One of tiny, small, base, large, xl instead of [model]'s.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the events.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget, to which the learning rate falls.")] = None,
    start: Annotated[Path | None, typer.Option(help="Folder of an older model to go on from.")] = None,
    transfer: Annotated[bool, typer.Option("--transfer", help="The older model is another shop's.")] = False,
    on: Annotated[str, typer.Option(help="local, torchrun, ray, or ray://host:port.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Workers that share each batch.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of every random draw. Default: the config's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Pre-train the large model on a folder of events; a run that was stopped goes on where it was."""
    chosen = PretrainConfig() if config is None else read_pretrain_config(config)
    if size is not None:
        shape, model = find_size(size), chosen.model
        shape = replace(
            model, dim=shape.dim, num_layers=shape.num_layers, num_heads=shape.num_heads, dropout=shape.dropout
        )
        chosen = replace(chosen, model=shape)
    training = chosen.training
    if epochs is not None:
        training = replace(training, num_epochs=epochs)
    if minutes is not None:
        training = replace(training, max_seconds=60 * minutes, num_epochs=0 if epochs is None else epochs)
    chosen = replace(chosen, training=training, seed=chosen.seed if seed is None else seed)
    trained = pretrain(events, out, chosen, start=start, transfer=transfer, on=on, workers=workers, quiet=as_json)
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun, one worker speaks
        return
    if as_json:
        print(json.dumps({"items": len(trained.items), "history": [record._asdict() for record in trained.history]}))
        return
    Console(highlight=False).print(
        f"{len(trained.history)} epochs, loss {trained.history[0].loss:.3f} → {trained.history[-1].loss:.3f}, "
        f"{len(trained.items):,} items; model in {out}"
    )


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
    """Judge every meta-learner on public few-shot protocols, beside the floor and the figures known elsewhere.

    Trains on one thread; melu takes about 25 minutes, lastfm five.
    """
    chosen = None if learners is None else [name for name in learners.split(",") if name]
    told = Console(stderr=True, quiet=as_json, highlight=False)

    def say(line: str) -> None:
        told.print(line, style="dim", soft_wrap=True)

    runs = []
    for name in PROTOCOLS if protocol == "all" else [protocol]:
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
    """Judge the large model on public sequences, leave one out and full ranking, beside the floor and known figures.

    Palate on ml-1m takes about an hour of one core for each seed, the others less; a run that is stopped goes on.
    """
    chosen = None if models is None else [name.strip() for name in models.split(";") if name.strip()]
    told = Console(stderr=True, quiet=as_json, highlight=False)

    def say(line: str) -> None:
        told.print(line, style="dim", soft_wrap=True)

    runs = []
    for name in SEQUENCE_DATA if dataset == "all" else [dataset]:
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
    as_json: JsonOption = False,
) -> None:
    """Judge fast weights on cold people, after 1 to 100 events, beside the frozen sequence model alone.

    Takes about a quarter of an hour of one core on ml-1m; a run that is stopped goes on.
    """
    torch.set_num_threads(1)
    told = Console(stderr=True, quiet=as_json, highlight=False)
    found = run_cold(
        open_sequences(dataset, data),
        ColdConfig(),
        seed=seed,
        folder=out / "checkpoints" / f"{dataset}-cold-{seed}",
        say=lambda line: told.print(line, style="dim", soft_wrap=True),
    )
    write_atomically(out / f"{dataset}-cold-{seed}.json", json.dumps(found, indent=1).encode())
    if as_json:
        print(json.dumps(found))
        return
    for part, title in (("next", "the next item"), ("later", "all later items")):
        Console().print(cold_table(found, part, title))


def main() -> None:
    """Entry point of the `palate` script."""
    app(prog_name="palate")


# -------------------------------------------------------------------------------------------------- inside


def _read_table(path: Path) -> pl.DataFrame:
    return parquet_table(path) if path.suffix.lower() == ".parquet" else csv_table(path)


def _train_and_judge(
    config: Config,
    base: Path | None,
    folder: Path,
    out: Path | None,
    workers: int | None,
    as_json: bool,
    checkpoints: Path | None = None,
) -> dict[str, Any]:
    """Train; judge where the config sets a cut; only then save the model and write the report."""
    torch.set_num_threads(1)  # repeats are bit-identical
    reporter = _reporter(as_json)
    if base is not None:
        config = replace(config, data=_absolute(config.data, base))
    dataset = _open(config.data, None, reporter)
    cut = config.evaluation.cut
    learned = dataset
    if cut is not None:
        with reporter.stage("split") as stage:
            split = palate.temporal_split(dataset, cut)
            learned = replace(dataset, interactions=split.train)
            stage.done(
                f"{len(split.train_users):,} people before {split.cut}, "
                f"{split.cold_user_events['user_id'].n_unique():,} cold users and {len(split.cold_items):,} cold "
                "items after"
            )
    recommender = palate.train(
        learned, config, reporter=reporter, checkpoints=checkpoints, workers=workers or os.cpu_count() or 1
    )
    results: dict[str, Any] = {}
    if cut is not None:
        results = palate.evaluate(recommender, dataset, reporter=reporter)
    with reporter.stage("save") as stage:
        recommender.save(folder)
        write_atomically(home() / "current", str(folder.resolve()).encode())
        stage.done(f"model {recommender.model_id} in {folder}")
    if results:
        _show(results, out, as_json)
    return results | {"model": {"folder": str(folder), "model_id": recommender.model_id}}


def _open(source: DataConfig, base: Path | None, reporter: Reporter) -> Dataset:
    with reporter.stage("load and clean") as stage:
        dataset = source.open(base)
        cleaning = dataset.cleaning
        kept = f"{len(dataset.interactions):,} events of {dataset.summary()['num_users']:,} people"
        stage.done(kept if cleaning is None else f"{cleaning.rows_in:,} rows in, {kept}")
    if cleaning is not None and reporter.console is not None:
        for step in cleaning.steps:
            if step.rows_dropped:
                reporter.console.print(f"    −{step.rows_dropped:>7,}  {step.name}", highlight=False)
    return dataset


def _absolute(data: DataConfig, base: Path) -> DataConfig:
    def resolved(name: str | None) -> str | None:
        return None if name is None else str((base / name).resolve())

    return replace(
        data, interactions=resolved(data.interactions), items=resolved(data.items), users=resolved(data.users)
    )


def _whole(option: str, text: str) -> int:
    """A whole number, also as 1e8."""
    try:
        number = float(text)
        if number == int(number) and number >= 0:
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"{option} {text!r}: expected a whole number of at least 0, such as 50000 or 1e8")


def _model_folder(name: str) -> Path:
    return home() / "models" / name


def _reporter(as_json: bool) -> Reporter:
    return Reporter(None if as_json else Console())


def _show(results: dict[str, Any], out: Path | None, as_json: bool) -> None:
    if out is not None:
        write_atomically(out / "results.json", json.dumps(results, indent=1, allow_nan=False).encode())
        write_report(results, out / "report.html")
    if as_json:
        return
    console = Console()
    console.print()
    console.print(few_shot_table(results))
    for part in ("cold_items", "warm"):
        if results[part] is not None:
            console.print(few_shot_table(results, part))
    console.print(headline(results))
    if out is not None:
        console.print(f"Report: {out / 'report.html'}", highlight=False)


def _print_list(lines: list[Recommendation], as_json: bool) -> None:
    if as_json:
        print(json.dumps([line._asdict() for line in lines]))
        return
    table = Table("#", "item", "title", "score", "why", box=None, pad_edge=False)
    for line in lines:
        table.add_row(str(line.rank), line.item_id, line.title, f"{line.score:.2f}", line.reason)
    Console().print(table)


def _print_customer(console: Console, customer: dict[str, Any]) -> None:
    known = ", ".join(str(value) for value in customer["profile"].values())
    console.print(f"\n[bold]Customer {customer['user_id']}[/] ({known}), {customer['label']}:")
    console.print("  has: " + " · ".join(item["title"] for item in customer["support"]), highlight=False)
    for line in customer["recommended"]:
        mark = "[green]✓ bought later[/]" if line["bought_later"] else ""
        console.print(f"  {line['rank']:>2}  {line['title']:<38} {mark}", highlight=False)


if __name__ == "__main__":
    main()
