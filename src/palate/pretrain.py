"""Pre-train the large model from a folder of events: in this process, on several workers, or on a Ray cluster.

    write_log     interactions → a folder of flat columns with the names of its items, mapped into memory by training
    pretrain      folder of events → folder of a trained sequence model, resumable, on as many workers as there are
    load_model    that folder → the model and its items

A run that starts from an older model keeps what that has learned: items it knew stay, new ones begin at zero, people
need nothing.
"""

import hashlib
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from palate.backbone.batches import BatchConfig, BatchSource, inputs
from palate.backbone.engine import train
from palate.backbone.launch import launch
from palate.backbone.parallel import layouts_of, worker_device
from palate.backbone.run_state import EpochRecord, trained_weights
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.backbone.warm_start import grow_model, transfer_model
from palate.config import _build as build_settings
from palate.data.episodes import is_held_out
from palate.data.event_log import EventLog, open_events, write_events
from palate.data.files import write_atomically
from palate.data.record import read_record
from palate.data.vocabulary import Vocabulary
from palate.errors import ConfigError, DataError, ModelError
from palate.scorers.next_item import hold_out_last, judge_next
from palate.threads import one_thread

_FORMAT = "palate-sequence-model-2"
_LEAST_JUDGED = 20
"""With fewer people nothing is said of a model."""


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that a run depends on beside its events."""

    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    """Shape and loss of the model."""
    batches: BatchConfig = field(default_factory=BatchConfig)
    """How histories become batches."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it is trained."""
    seed: int = 0
    """Of the starting weights, of dropout and of the order of batches."""
    judged: int = 2000
    """People whose last event is kept from training: half of them tune EASE, the other half say how good the model and
    EASE are; 0: nobody, and nothing is said."""

    def __post_init__(self) -> None:
        if self.judged < 0:
            raise ConfigError(f"judged is {self.judged}; it must be at least 0")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be from 0 to 2^63 − 1")


def read_pretrain_config(path: str | Path) -> PretrainConfig:
    """Read a TOML file with the tables [model], [batches] and [training]; what is not in it keeps its default.

    Raises:
        ConfigError: no such file, not TOML, an unknown setting or a value that does not fit.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as TOML ({str(error).splitlines()[0]})") from None
    config: PretrainConfig = build_settings(PretrainConfig(), values, str(path), "")
    return config


class Pretrained(NamedTuple):
    """A trained model and what its numbers mean."""

    model: SequenceModel
    """In evaluation mode."""
    items: Vocabulary
    """Ids of its items."""
    kinds: tuple[str, ...]
    """What the numbers of the kinds of events mean."""
    history: tuple[EpochRecord, ...]
    """How training went, an entry an epoch."""
    held_out: float = 0.0
    """Share of the people who were kept from it; see `palate.data.episodes.is_held_out`."""
    until: float = math.inf
    """When the last event happened that it has learned from, in seconds since 1970-01-01."""
    quality: Mapping[str, Any] | None = None
    """How good the model is at the next item; see `palate.scorers.next_item`. None: too few people to say."""


def write_log(
    interactions: pl.DataFrame,
    folder: str | Path,
    content: Mapping[str, Float32[np.ndarray, "content"]] | None = None,
    profiles: Mapping[str, Float32[np.ndarray, "profile"]] | None = None,
    *,
    held_out: float = 0.0,
) -> EventLog:
    """Write validated interactions (see `palate.validate_interactions`) as flat columns, people and items by their ids.

    Event types become kinds, in the order of their names. `content` gives each item's features, such as the vector of
    its text; `profiles` each person's, which a model of this log then reads. A share `held_out` of the people is left
    out, by their ids: whatever is learned above a model of this log can meet them as people whom it has not seen.

    Raises:
        ConfigError: a share that is not from 0 to below 1.
        DataError: nobody is left, there are more than 255 event types, an item without content or a person without a
            profile, or the folder cannot be written.
    """
    folder = Path(folder)
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out is {held_out}; it must be at least 0 and below 1")
    if held_out:
        left_out = [user for user in interactions["user_id"].unique() if is_held_out(user, held_out)]
        interactions = interactions.filter(~pl.col("user_id").is_in(left_out))
        if interactions.is_empty():
            raise DataError(f"events: everybody is left out with held_out = {held_out}; lower it")
    items = interactions["item_id"].unique().sort().to_list()
    users, kinds, log = read_record(interactions, Vocabulary(tuple(items)))
    if len(kinds) > 255:
        raise DataError(f"events: {len(kinds)} event types; at most 255 can be told apart; merge some")
    if profiles is not None:
        log = replace(log, profiles=_table("person", "profile", list(users), profiles))
    table = None if content is None else _table("item", "content", items, content)
    (folder / "names.json").unlink(missing_ok=True)  # the names come last and make the folder valid
    write_events(log, folder)
    (folder / "content.safetensors").unlink(missing_ok=True)
    if table is not None:
        write_atomically(folder / "content.safetensors", save({"content": torch.from_numpy(table)}))
    names = {"items": items, "kinds": kinds, "held_out": held_out, "until": float(log.times.max(initial=0.0))}
    write_atomically(folder / "names.json", json.dumps(names).encode())
    return log


def _table(
    what: str, described: str, names: list[str], features: Mapping[str, Float32[np.ndarray, "feature"]]
) -> Float32[np.ndarray, "name feature"]:
    """Features in the order of names."""
    missing = [name for name in names if name not in features]
    if missing:
        raise DataError(
            f"events: {what} {missing[0]!r} has no {described} ({len(missing):,} lack it); describe all or none"
        )
    return np.stack([features[name] for name in names]).astype(np.float32)


def pretrain(
    events: str | Path,
    folder: str | Path,
    config: PretrainConfig,
    *,
    start: str | Path | None = None,
    transfer: bool = False,
    on: str = "local",
    workers: int = 1,
    quiet: bool = False,
) -> Pretrained:
    """Train on the events of a folder and leave the model in another; a run that was killed goes on where it was.

    Args:
        events: what `write_log` wrote; it is mapped into memory, by every worker for itself.
        folder: takes checkpoints and the trained model; all workers must see it.
        config: the settings.
        start: folder of an older model of the same settings to go on from, with more items or other events.
        transfer: the older model is another shop's: its reading of sequences and content is taken over, not its items.
        on: local, torchrun, ray, or ray://host:port; see `palate.backbone.launch`.
        workers: how many share each batch.
        quiet: whether epochs are not printed.

    Raises:
        ConfigError, DataError, ModelError, NumericalError: as the parts do; the last checkpoint is whole.
    """
    events, folder = Path(events), Path(folder)
    start = None if start is None else Path(start)
    kinds = _names(events)["kinds"]  # before workers start
    if 0 < config.model.num_kinds < len(kinds):
        raise ConfigError(
            f"model.num_kinds is {config.model.num_kinds}, {events} has {len(kinds)} kinds: {', '.join(kinds)}"
        )
    if start is not None and start.resolve() == folder.resolve():
        raise ConfigError(f"start and out are both {folder}; leave the new model in another folder")
    if start is not None:
        _read_page(start)
    elif transfer:
        raise ConfigError("transfer is on and there is no model to start from; name one")
    arguments: dict[str, Any] = {"events": str(events), "folder": str(folder), "settings": asdict(config)}
    arguments |= {"start": None if start is None else str(start), "transfer": transfer, "quiet": quiet}
    launch("palate.pretrain:work", arguments, on=on, workers=workers)
    trained = load_model(folder)
    if trained.quality is None and int(os.environ.get("RANK", "0")) == 0:
        trained = _judged(trained, events, folder, config)
    return trained


def _judged(trained: Pretrained, events: Path, folder: Path, config: PretrainConfig) -> Pretrained:
    """Judge a trained model by the events that were kept from it, and write down how good it is."""
    log = open_events(events)
    number = trained.items.index(_names(events)["items"]).astype(np.int32)
    held = hold_out_last(replace(log, items=number[log.items]), config.judged)
    if len(held.targets) < _LEAST_JUDGED:
        return trained
    model = trained.model

    def score(part: EventLog) -> Float32[np.ndarray, "user item"]:
        with torch.inference_mode():
            return np.asarray(model.scores(inputs(part, model.config.max_events)).numpy())

    with one_thread():
        quality = judge_next(score, held, len(trained.items))
    write_atomically(folder / "model.json", json.dumps(_read_page(folder) | {"quality": quality}).encode())
    return trained._replace(quality=quality)


def work(events: str, folder: str, settings: dict[str, Any], start: str | None, transfer: bool, quiet: bool) -> None:
    """What each worker does; all arguments are plain values, so that they can travel."""
    config: PretrainConfig = build_settings(PretrainConfig(), settings, "pretraining", "")
    names, log = _names(Path(events)), open_events(Path(events))
    older = None if start is None else load_model(Path(start))
    items = tuple(names["items"])
    if older is not None and older.model.config != config.model:
        raise ConfigError(f"{start}: its settings differ from those asked for; go on with the same [model]")
    content = _content(Path(events))
    if older is not None and config.model.num_kinds and older.kinds != tuple(names["kinds"]):
        raise DataError(
            f"warm start: the older model knows the kinds {', '.join(older.kinds)}, {events} has "
            f"{', '.join(names['kinds'])}; they must be the same"
        )
    if older is not None and not transfer:
        items, log, content = _aligned(older, Vocabulary(items), log, content)
    log = hold_out_last(log, config.judged).training
    catalogue = Catalogue(torch.from_numpy(np.bincount(log.items, minlength=len(items))), content)
    torch.manual_seed(config.seed)
    if older is None:
        model = SequenceModel(config.model, catalogue, _profile_width(log))
    else:
        if len(older.model.profile) != _profile_width(log):
            raise DataError(
                f"warm start: {events} has {_profile_width(log)} profile features, the older model reads "
                f"{len(older.model.profile)}; give the same"
            )
        model = (transfer_model if transfer else grow_model)(older.model, catalogue).train()
    page: dict[str, Any] = {"format": _FORMAT, "settings": settings, "items": list(items), "kinds": names["kinds"]}
    page["profile_features"] = _profile_width(log)
    page |= _unseen(names, older)
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    _claim(Path(folder), _identity(config, items, log, content, start, transfer), first)
    result = train(
        model,
        BatchSource(log, config.batches, config.model.max_events),
        config.training,
        seed=config.seed,
        folder=Path(folder) / "run",
        device=worker_device(),
        on_epoch=None if quiet else _print_epoch,
    )
    if first:
        if content is not None:
            write_atomically(Path(folder) / "content.safetensors", save({"content": content}))
        page["history"] = [record._asdict() for record in result.history]
        write_atomically(Path(folder) / "model.json", json.dumps(page).encode())
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody reads the model before it is there


def _unseen(names: Mapping[str, Any], older: Pretrained | None) -> dict[str, float]:
    """Whom the model has not seen, and whom the one that it goes on from has not."""
    held_out, until = names.get("held_out", 0.0), names.get("until", math.inf)
    if older is not None:
        held_out, until = min(held_out, older.held_out), max(until, older.until)
    return {"held_out": held_out, "until": until}


def _print_epoch(record: EpochRecord) -> None:
    print(f"epoch {record.epoch}: loss {record.loss:.4f}, {record.seconds:.0f} s", flush=True)


def load_model(folder: str | Path) -> Pretrained:
    """Read a trained model.

    Raises:
        ModelError: the folder holds none, or the run has not ended.
    """
    folder = Path(folder)
    page = _read_page(folder)
    config: PretrainConfig = build_settings(PretrainConfig(), page["settings"], str(folder), "")
    items = Vocabulary(tuple(page["items"]))
    with torch.random.fork_rng(devices=[]):
        counts = torch.ones(len(items), dtype=torch.int64)
        model = SequenceModel(config.model, Catalogue(counts, _content(folder)), page["profile_features"])
    layouts = layouts_of(model)  # a worker keeps its own rows of a sharded table
    weights = trained_weights(folder / "run")
    model.load_state_dict({name: layouts[name].part(value) for name, value in weights.items()})
    if config.batches.first_tile:  # nobody was read from the middle on: who is now begins as everyone did
        model.resume.data.copy_(model.start.data)
    return Pretrained(
        model.eval(),
        items,
        tuple(page["kinds"]),
        tuple(EpochRecord(**record) for record in page["history"]),
        page.get("held_out", 0.0),
        page.get("until", math.inf),
        page.get("quality"),
    )


def _read_page(folder: Path) -> dict[str, Any]:
    try:
        page = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if page["format"] != _FORMAT:
            raise ModelError(f"{folder}: format {page['format']!r}; this version reads {_FORMAT!r}; train it again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{folder}: no trained sequence model ({reason}); end the run, or give another folder"
        ) from None
    return dict(page)


def _names(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "names.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{folder}: no folder of events ({reason}); write one with palate events") from None


def _identity(
    config: PretrainConfig,
    items: tuple[str, ...],
    log: EventLog,
    content: Tensor | None,
    start: str | None,
    transfer: bool,
) -> str:
    """Hash all that a run's weights depend on but how long it is trained."""
    digest = hashlib.sha256(repr((config.model, config.batches, config.seed, items, start, transfer)).encode())
    features = None if content is None else content.numpy()
    for column in (log.items, log.offsets, log.seconds, log.kinds, log.values, log.profiles, features):
        digest.update(
            b"none" if column is None else repr(column.shape).encode() + np.ascontiguousarray(column).tobytes()
        )
    return digest.hexdigest()


def _claim(folder: Path, identity: str, first: bool) -> None:
    """Refuse a folder that holds another run; note whose it is, and that its model is not ready."""
    path = folder / "identity"
    if path.exists():
        if path.read_text(encoding="ascii") != identity:
            raise ModelError(f"{folder}: holds a run on other events or with other settings; choose another folder")
    elif first:
        write_atomically(path, identity.encode())
    if first:
        (folder / "model.json").unlink(missing_ok=True)


def _profile_width(log: EventLog) -> int:
    return 0 if log.profiles is None else log.profiles.shape[1]


def _content(folder: Path) -> Float[Tensor, "item content"] | None:
    """The items' features, where the folder has them."""
    path = folder / "content.safetensors"
    try:
        return load(path.read_bytes())["content"] if path.exists() else None
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path}: not readable ({str(error).splitlines()[0]}); write the events again") from None


def _aligned(
    older: Pretrained, found: Vocabulary, log: EventLog, content: Tensor | None
) -> tuple[tuple[str, ...], EventLog, Tensor | None]:
    """The older model's items and then the new ones; log (read into memory for it) and content in their numbers."""
    known = older.items
    fresh = [name for name in found.ids if name not in known]
    items = (*known.ids, *fresh)
    place = {name: number for number, name in enumerate(items)}
    numbers = np.array([place[name] for name in found.ids], np.int32)
    features = older.model.items.content
    if (features is None) != (content is None):
        raise DataError("warm start: the older model and the new events must both have content, or neither")
    if features is not None and content is not None:
        content = torch.cat([features, content[torch.from_numpy(found.index(fresh))]])
    return items, replace(log, items=numbers[log.items]), content
