"""The large model: what a training takes, a log for it, the training itself."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console

from palate.backbone.devices import find_device
from palate.backbone.item_tables import ItemTableConfig
from palate.backbone.next_item import LossConfig
from palate.backbone.plan import PlanConfig, make_plan
from palate.backbone.plan_tables import plan_json, plan_tables
from palate.backbone.sizes import find_size
from palate.cli.common import (
    JsonOption,
    command,
)
from palate.cli.outputs import check_folder
from palate.data.log import require_columns, validate_interactions, validate_items
from palate.data.tables import csv_table, parquet_table
from palate.encoders.text import TextConfig, encode_texts
from palate.errors import ConfigError
from palate.pretrain import PretrainConfig, pretrain, read_pretrain_config, write_log
from palate.scorers.next_item import describe
from palate.threads import keep_to_one_thread


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
    keep_to_one_thread()
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
    held_out: Annotated[
        float,
        typer.Option(help="Share of the people to leave out, so that `palate train --backbone` has newcomers."),
    ] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Write events as flat columns that training maps into memory, with the items' texts encoded."""
    check_folder(out, "--out")
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
    written = write_log(interactions, out, content, held_out=held_out)
    num_items = int(written.items.max()) + 1
    left_out = interactions["user_id"].n_unique() - written.num_users
    if as_json:
        counts = {"events": len(written), "people": written.num_users, "items": num_items, "folder": str(out)}
        counts["left_out"] = left_out
        print(json.dumps(counts))
    else:
        Console(highlight=False).print(
            f"{len(written):,} events of {written.num_users:,} people with {num_items:,} items in {out}"
            + (f"; {left_out:,} people left out for `palate train --backbone` (--held-out)" if left_out else "")
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
    check_folder(out, "--out")
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
        history = [record._asdict() for record in trained.history]
        print(json.dumps({"items": len(trained.items), "history": history, "quality": trained.quality}))
        return
    Console(highlight=False).print(
        f"{len(trained.history)} epochs, loss {trained.history[0].loss:.3f} → {trained.history[-1].loss:.3f}, "
        f"{len(trained.items):,} items; model in {out}"
        + ("" if trained.quality is None else f"\n{describe(trained.quality)}")
    )


def _read_table(path: Path) -> pl.DataFrame:
    return parquet_table(path) if path.suffix.lower() == ".parquet" else csv_table(path)


def _whole(option: str, text: str) -> int:
    """A whole number, also as 1e8."""
    try:
        number = float(text)
        if number == int(number) and number >= 0:
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"{option} {text!r}: expected a whole number of at least 0, such as 50000 or 1e8")
