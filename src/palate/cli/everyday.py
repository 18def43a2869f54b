"""The main job: demo, train, evaluate, recommend, predict, similar, config."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import palate
from palate.cli.common import (
    JsonOption,
    ModelOption,
    WorkersOption,
    command,
    find_model,
    home,
)
from palate.cli.outputs import check_files, check_folder, check_model_folder, check_report_folder
from palate.config import Config, DataConfig, EvaluationConfig, read_config
from palate.data.dataset import Dataset
from palate.data.files import write_atomically
from palate.errors import ConfigError, DataError, ModelError, PalateError
from palate.evaluation.report import few_shot_table, headline, write_report
from palate.evaluation.run import check_evaluation
from palate.progress import Reporter
from palate.recommend import Recommendation
from palate.threads import keep_to_one_thread

DEMO = Config(data=DataConfig(bundled="online-retail"), evaluation=EvaluationConfig(cut="2011-09-01"))
EXAMPLE_CONFIG = """\
seed = 0
[data]
interactions = "events.csv"      # user_id,item_id,timestamp[,event_type,weight or rating]
items = "items.csv"              # item_id,title[,price,brand,…]
columns = { customer = "user_id" }
[evaluation]
cut = "2026-01-01"               # train before, judge after
[meta]
learner = "ridge"                # or "laplace", "maml", "anil", "meta-sgd", …: see docs/meta-learning.md
"""


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
    _refuse_worse_than_chance(results)
    if as_json:
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
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of a model that `palate pretrain` has trained: the shared model.")
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model on your data.

    With evaluation.cut set, it learns from the events before the cut alone and is judged on the people after it;
    without, it learns from everything.

    What can be refused is refused before the training, and the model is saved before it is judged. One that is shown to
    rank worse than chance on people held out is saved too, does not become the current one, and gives exit code 2.
    """
    settings = read_config(config)
    if backbone is not None:
        settings = replace(settings, backbone=str(backbone.resolve()))
    folder = out or _model_folder(config.stem)
    results = _train_and_judge(settings, config.parent, folder, report, workers, as_json, resume)
    if as_json:
        print(json.dumps(results))
    _refuse_worse_than_chance(results)


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
    check_report_folder(out, "--out")
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
    parts: Annotated[bool, typer.Option("--parts", help="Show what each scorer adds, in place of the reason.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the best items for a person, known or not.

    Nothing of the person but --events is needed: the model adapts to them on the spot. With none of --user, --events
    and --items the list is the one for a newcomer (with --profile, for one of whom that is known).
    """
    who = _who(user, events, None if items is None else _split(items), "--items")
    attributes = _attributes(profile)
    keep_to_one_thread()
    recommender = find_model(model)
    with _naming(events, "--items"):
        lines = recommender.recommend(
            who(), k, profile=attributes or None, exclude=exclude or (), include_seen=include_seen
        )
    _print_list(lines, as_json, parts=parts)


@command("predict")
def predict(
    items: Annotated[str, typer.Argument(help="Ids of the items asked about, separated by commas.")],
    user: Annotated[str | None, typer.Option(help="Id of a person in training.")] = None,
    events: Annotated[
        Path | None,
        typer.Option(help="CSV or Parquet of one person's events; those that rate count, or a column rating."),
    ] = None,
    ratings: Annotated[
        str | None, typer.Option(help="What the person has rated, as item=rating, oldest first, separated by commas.")
    ] = None,
    profile: Annotated[list[str] | None, typer.Option(help="name=value, repeatable, such as country=France.")] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how a person, known or not, would rate items: a distribution over the ratings, its mean and its median.

    With none of --user, --events and --ratings the answer is for a newcomer (with --profile, for one of whom that is
    known).
    """
    who = _who(user, events, None if ratings is None else _ratings(ratings), "--ratings")
    attributes = _attributes(profile)
    keep_to_one_thread()
    recommender = find_model(model)
    with _naming(events, "--ratings"):
        found = recommender.predict(who(), _split(items), profile=attributes or None)
    if as_json:
        print(json.dumps([{**line._asdict(), "distribution": dict(line.distribution)} for line in found]))
        return
    levels = [f"{level:g}" for level in found[0].distribution] if found else []
    table = Table("item", "title", "mean", "median", *levels, box=None, pad_edge=False)
    for line in found:
        chances = [f"{chance:.0%}" for chance in line.distribution.values()]
        table.add_row(line.item_id, line.title, f"{line.mean:.2f}", f"{line.median:g}", *chances)
    Console().print(table)


@command("similar")
def similar(
    item: Annotated[str, typer.Argument(help="Item id.")],
    k: Annotated[int, typer.Option("-k", help="Length of the list.")] = 10,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the items most similar to one, in the sense that the model has learned."""
    keep_to_one_thread()
    _print_list(find_model(model).similar_items(item, k), as_json)


def _who(user: str | None, events: Path | None, known: Any, option: str) -> Callable[[], Any]:
    """Reads what the person is known by; that only one of the options says so is checked at once."""
    if sum(value is not None for value in (user, events, known)) > 1:
        raise ConfigError(f"give one of --user, --events and {option}")
    return lambda: palate.read_events(events) if events is not None else user if user is not None else known or []


def _attributes(profile: list[str] | None) -> dict[str, object]:
    attributes: dict[str, object] = {}
    for pair in profile or []:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--profile {pair!r}: expected name=value, such as country=France")
        attributes[name] = value
    return attributes


def _ratings(text: str) -> dict[str, float]:
    ratings: dict[str, float] = {}
    for pair in _split(text):
        item, _, rating = pair.rpartition("=")  # an id may hold the sign
        try:
            ratings[item] = float(rating)
        except ValueError:
            item = ""
        if not item:
            raise ConfigError(f"--ratings {pair!r}: expected item=rating, such as B07=4.5")
    return ratings


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@contextmanager
def _naming(events: Path | None, option: str) -> Iterator[None]:
    """The library speaks of "events"; whoever typed a file name should read it again."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace("events:", f"{events or option}:", 1)) from None


@command("config")
def show_config(as_json: JsonOption = False) -> None:
    """Print an example palate.toml (with --json: every setting and its default)."""
    print(json.dumps(Config().to_dict(), indent=2) if as_json else EXAMPLE_CONFIG, end="" if not as_json else "\n")


def _train_and_judge(
    config: Config,
    base: Path | None,
    folder: Path,
    out: Path | None,
    workers: int | None,
    as_json: bool,
    checkpoints: Path | None = None,
) -> dict[str, Any]:
    """Check all that can be checked; train; save the model; judge it where the config sets a cut, and report."""
    check_model_folder(folder, "the model folder")
    check_report_folder(out, "the folder of the report")
    check_folder(checkpoints, "--resume")
    check_files([home() / "current"], "$PALATE_HOME")
    reporter = _reporter(as_json)
    if base is not None:
        config = replace(config, data=_absolute(config.data, base))
        if config.backbone is not None:
            config = replace(config, backbone=str((base / config.backbone).resolve()))
    dataset = _open(config.data, None, reporter)
    cut = config.evaluation.cut
    learned = dataset
    if cut is not None:
        with reporter.stage("split") as stage:
            split = palate.temporal_split(dataset, cut)
            learned = replace(dataset, interactions=split.train)
            check_evaluation(learned, split, config)
            stage.done(
                f"{len(split.train_users):,} people before {split.cut}, "
                f"{split.cold_user_events['user_id'].n_unique():,} cold users and {len(split.cold_items):,} cold "
                "items after"
            )
    recommender = palate.train(
        learned, config, reporter=reporter, checkpoints=checkpoints, workers=workers or os.cpu_count() or 1
    )
    quality = recommender.training.get("quality")
    with reporter.stage("save") as stage:
        recommender.save(folder)
        if not _is_worse_than_chance(quality):
            write_atomically(home() / "current", str(folder.resolve()).encode())
        stage.done(f"model {recommender.model_id} in {folder}")
    results: dict[str, Any] = {}
    if cut is not None:
        try:
            results = palate.evaluate(recommender, dataset, reporter=reporter)
            _show(results, out, as_json)
        except PalateError as error:
            raise type(error)(f"{error} (the model was trained and is saved in {folder})") from None
    about = {"folder": str(folder), "model_id": recommender.model_id, "quality": quality}
    return results | {"model": about}


def _is_worse_than_chance(quality: Any) -> bool:
    return quality is not None and quality["verdict"] == "worse"


def _refuse_worse_than_chance(results: dict[str, Any]) -> None:
    """End with exit code 2 where there is evidence that the model is broken; it is saved all the same.

    Raises:
        ModelError: there is.
    """
    folder, quality = results["model"]["folder"], results["model"]["quality"]
    if _is_worse_than_chance(quality):
        raise ModelError(
            f"{folder}: the model is saved here but is not the current one: on people held out {quality['text']}; "
            "check the data and the settings, or use it anyway with --model"
        )


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


def _print_list(lines: list[Recommendation], as_json: bool, *, parts: bool = False) -> None:
    if as_json:
        print(json.dumps([line._asdict() for line in lines]))
        return
    table = Table("#", "item", "title", "score", "parts" if parts else "why", box=None, pad_edge=False)
    for line in lines:
        why = _spelled(line.parts) if parts else line.reason
        table.add_row(str(line.rank), line.item_id, line.title, f"{line.score:.2f}", why)
    Console().print(table)


def _spelled(parts: Mapping[str, float]) -> str:
    """What scorers add to a score, the largest first; those that add nothing are left out."""
    largest = sorted(parts.items(), key=lambda part: -abs(part[1]))
    return ", ".join(f"{name} {value:+.2f}" for name, value in largest if round(value, 2))


def _print_customer(console: Console, customer: dict[str, Any]) -> None:
    known = ", ".join(str(value) for value in customer["profile"].values())
    console.print(f"\n[bold]Customer {customer['user_id']}[/] ({known}), {customer['label']}:")
    console.print("  has: " + " · ".join(item["title"] for item in customer["support"]), highlight=False)
    for line in customer["recommended"]:
        mark = "[green]✓ bought later[/]" if line["bought_later"] else ""
        console.print(f"  {line['rank']:>2}  {line['title']:<38} {mark}", highlight=False)
