"""Every setting of a training run, as one frozen value; TOML in, JSON with the saved model out."""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_type_hints

from palate.backbone.batches import BatchConfig
from palate.backbone.next_item import LossConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.dataset import Dataset
from palate.data.episodes import EventMeaning
from palate.data.log import RATING_EVENT_TYPE
from palate.data.sources import load, read_csv, read_parquet
from palate.encoders.attributes import AttributeConfig
from palate.encoders.text import TextConfig
from palate.errors import ConfigError
from palate.meta import read_settings
from palate.meta.evidence import EvidenceConfig
from palate.meta.item_tasks import ItemTaskConfig
from palate.meta.training import MetaConfig
from palate.ratings.rating_model import RatingsConfig
from palate.scorers.item_item import ItemItemConfig

_NOT_READ = ("validate_every", "patience", "strategy")
"""Settings of the engine that have no part in the training of members."""


@dataclass(frozen=True)
class DataConfig:
    """Where the data comes from: a bundled data set, or files."""

    bundled: str | None = None
    """Name of a bundled data set, such as "online-retail"."""
    interactions: str | None = None
    """CSV or Parquet file of events: user_id, item_id, timestamp; optional event_type, weight, event_id, session_id."""
    items: str | None = None
    """File of items: item_id, and any attributes; a text column named title, name, description or text is encoded."""
    users: str | None = None
    """File of people: user_id, and any attributes."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Your column names to ours, for files that call them otherwise."""

    def __post_init__(self) -> None:
        if (self.bundled is None) == (self.interactions is None) and self.interactions is not None:
            raise ConfigError("data: give either bundled or interactions, not both")
        if self.interactions is None and (self.items is not None or self.users is not None):
            raise ConfigError("data: items and users need interactions; name the file of events")

    def open(self, folder: Path | None = None) -> Dataset:
        """Read the data; relative file names are relative to `folder`.

        Raises:
            ConfigError: neither a bundled data set nor a file is named.
            DataError: the data is not usable.
        """
        if self.bundled is not None:
            return load(self.bundled)
        if self.interactions is None:
            raise ConfigError('data: name a bundled data set (bundled = "online-retail") or a file (interactions = …)')
        base = folder or Path()
        files = [None if name is None else base / name for name in (self.interactions, self.items, self.users)]
        read = read_parquet if self.interactions.endswith(".parquet") else read_csv
        interactions, items, users = files
        assert interactions is not None
        return read(interactions, items, users, columns=dict(self.columns) or None)


@dataclass(frozen=True)
class EvaluationConfig:
    """How a model is judged on people it has never seen."""

    cut: str | None = None
    """Moment of the temporal split, ISO 8601: `palate train` then learns from the events before it alone, and
    `palate evaluate` judges on the people after it. None: train on everything."""
    support_sizes: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20)
    """Numbers of distinct items seen, N, on the few-shot curve."""
    k: int = 10
    """Length of the judged lists."""
    min_items: int = 25
    """A cold user needs this many distinct items, so that something is left to predict at the largest N."""
    num_resamples: int = 2000
    """Bootstrap resamples behind each interval."""

    def __post_init__(self) -> None:
        sizes = self.support_sizes
        if not sizes or min(sizes) < 0 or list(sizes) != sorted(set(sizes)):
            raise ConfigError(f"evaluation.support_sizes is {sizes}; expected rising sizes from 0 on")
        if self.min_items <= min(sizes):
            raise ConfigError(
                f"evaluation.min_items is {self.min_items}; it must be above the smallest of support_sizes {sizes}"
            )
        for name in ("k", "num_resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class RefitConfig:
    """How each member goes on to everyone, after it has met the newcomers who were kept from it."""

    share: float = 0.3
    """Passes over all events, as a share of training.num_epochs and at least one; 0: the members serve as they are."""
    rate: float = 1.0
    """Peak learning rate of these passes, as a share of training.learning_rate."""

    def __post_init__(self) -> None:
        for name, low in (("share", "at least"), ("rate", "above")):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "rate" and value == 0):
                raise ConfigError(f"refit.{name} is {value}; it must be {low} 0 and at most 1")


@dataclass(frozen=True)
class RetrainingConfig:
    """How training goes on from a served model: `palate.pipeline.train` with `start`."""

    num_epochs: int = 3
    """Passes of each member over all events, from the served weights; takes the place of training.num_epochs."""
    rate: float = 1.0
    """Peak learning rate of the members, as a share of training.learning_rate."""
    num_steps: int = 100
    """Steps of meta-training, from the served head; takes the place of meta.num_steps."""
    min_newcomers: int = 30
    """People with meta.min_items distinct items who have come since the served model was trained. It has never seen
    them, so they can play the newcomer for it; with fewer the head is carried over as it is."""

    def __post_init__(self) -> None:
        for name, low in (("num_epochs", 1), ("num_steps", 1), ("min_newcomers", 3)):
            if getattr(self, name) < low:
                raise ConfigError(f"retraining.{name} is {getattr(self, name)}; it must be at least {low}")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"retraining.rate is {self.rate}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class GateConfig:
    """When a candidate may take the place of the served model: `palate.evaluation.gate`."""

    window: float = 14.0
    """Days: both models are replayed on the newest so many, of which neither may have learned."""
    k: int = 10
    """Length of the judged lists."""
    metric: Literal["ndcg", "hit_rate", "reciprocal_rank"] = "ndcg"
    """What decides: NDCG or hit rate of the first k places, or the reciprocal rank in the whole catalogue."""
    margin: float = 0.05
    """How far below the served model the candidate may be, at the lower end of the interval of their difference, as a
    share of the served model's mean; 0: it must not be worse at all."""
    confidence: float = 0.95
    """Level of the interval."""
    min_people: int = 50
    """People with an event to judge; with fewer the candidate is refused."""
    max_events: int = 10_000
    """Events that are judged, at most; where there are more, whole people are drawn."""
    num_resamples: int = 2000
    """Bootstrap resamples of people behind the interval."""

    def __post_init__(self) -> None:
        for name in ("k", "min_people", "max_events", "num_resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"gate.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.window > 0:
            raise ConfigError(f"gate.window is {self.window}; it must be above 0 days")
        if not self.margin >= 0:
            raise ConfigError(f"gate.margin is {self.margin}; it must be at least 0")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"gate.confidence is {self.confidence}; it must be between 0 and 1")


@dataclass(frozen=True)
class Config:
    """A whole run: data → encoders → backbone → meta-learner → evaluation."""

    seed: int = 0
    """Seed of every random draw; the same seed on the same machine gives the same model."""
    negative_events: tuple[str, ...] = ("cancel", "return", "dislike", "skip")
    """Event types that say no."""
    rating_events: tuple[str, ...] = (RATING_EVENT_TYPE,)
    """Event types whose weight is a rating of the item."""
    data: DataConfig = field(default_factory=DataConfig)
    """What to learn from."""
    text: TextConfig = field(default_factory=TextConfig)
    """How item texts become vectors."""
    attributes: AttributeConfig = field(default_factory=lambda: AttributeConfig(numeric="log-standard"))
    """How other attributes, of items and of people, become numbers."""
    backbone: str | None = None
    """Folder of a model that `palate pretrain` has trained: it is the shared model then, as it is, and brings the
    settings of `model` with it; `batches`, `training` and `refit` say nothing then, but to a retraining, which goes on
    from the served model. None: the members are trained here."""
    num_members: int = 2
    """Shared models trained from different seeds and scored together."""
    model: SequenceModelConfig = field(
        default_factory=lambda: SequenceModelConfig(
            max_events=64, visit_gap=12.0, dropout=0.3, id_dropout=0.1, loss=LossConfig(distinct=True)
        )
    )
    """The shared model."""
    batches: BatchConfig = field(
        default_factory=lambda: BatchConfig(tokens=1024, window=12, decay=0.6, even_start=True, first_tile=True)
    )
    """What the shared model is asked for in a training step."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(num_epochs=7, precision="bfloat16"))
    """How the shared model is trained."""
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    """The item features that a person's fast weights are over."""
    item_item: ItemItemConfig = field(default_factory=ItemItemConfig)
    """What goes with what: the item-item scorers beside the fast weights."""
    meta: MetaConfig = field(default_factory=MetaConfig)
    """The meta-learner and its training."""
    learner: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Settings of the learner that meta.learner names; what is not given keeps the learner's own default."""
    ratings: RatingsConfig = field(default_factory=RatingsConfig)
    """How ratings are learned, where there are any."""
    item_tasks: ItemTaskConfig = field(default_factory=ItemTaskConfig)
    """How a new item's row follows its first events."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How the model is judged."""
    refit: RefitConfig = field(default_factory=RefitConfig)
    """How each member goes on to everyone."""
    retraining: RetrainingConfig = field(default_factory=RetrainingConfig)
    """How training goes on from a served model."""
    gate: GateConfig = field(default_factory=GateConfig)
    """When a retrained model takes the place of the served one."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be from 0 to 2^63 − 1")
        if self.num_members < 1:
            raise ConfigError(f"num_members is {self.num_members}; it must be at least 1")
        both = set(self.negative_events) & set(self.rating_events)
        if both:
            raise ConfigError(f"{min(both)!r} is in negative_events and in rating_events; an event cannot say both")
        for name in _NOT_READ:
            if getattr(self.training, name) != getattr(TrainingConfig(), name):
                raise ConfigError(
                    f"training.{name} is {getattr(self.training, name)!r}, but members train side by side, one process "
                    "each, without validation; leave it out"
                )
        if min(self.meta.support_sizes) > self.model.max_events:
            raise ConfigError(
                f"meta.support_sizes is {self.meta.support_sizes}, but the model reads {self.model.max_events} "
                "events; name a smaller size or raise model.max_events"
            )
        read_settings(self.meta.learner, self.learner)

    @property
    def meaning(self) -> EventMeaning:
        """What types of events say."""
        return EventMeaning(frozenset(self.negative_events), frozenset(self.rating_events))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values that JSON takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> "Config":
        """Build from nested tables.

        Raises:
            ConfigError: an unknown setting (the nearest known one is named), or a value of the wrong type.
        """
        config: Config = _build(cls(), values, source, "")
        return config


def read_config(path: str | Path) -> Config:
    """Read a TOML file; a setting that is not in it keeps its default.

    Raises:
        ConfigError: no such file, not TOML, or as `Config.from_dict`.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `palate config` prints an example") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not readable as TOML ({error})") from None
    return Config.from_dict(values, source=str(path))


def _build(default: Any, values: Mapping[str, Any], source: str, prefix: str) -> Any:
    """A value like `default` but for what `values` says."""
    hints = get_type_hints(type(default))
    known = [setting.name for setting in fields(default)]
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{source}: unknown setting {prefix}{name}; {hint}")
        kind = hints[name]
        where = f"{source}: {prefix}{name}"
        if is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where} is {value!r}; expected a table [{prefix}{name}]")
            arguments[name] = _build(getattr(default, name), value, source, f"{prefix}{name}.")
        else:
            arguments[name] = _convert(value, kind, where)
    return replace(default, **arguments)


_MAPPINGS: dict[str, tuple[tuple[type, ...], str]] = {
    "Mapping[str, str]": ((str,), "text on both sides"),
    "Mapping[str, float]": ((int, float), "numbers"),
}
_PLAIN: tuple[tuple[type, ...], str] = ((bool, int, float, str), "plain values")


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Check a plain value against the annotation of its field; lists become tuples."""
    text = str(kind)
    if isinstance(value, list | tuple):
        inner, *others = kind.__args__ if text.startswith("tuple") else (None,)
        kinds = (int, float) if inner is float else (inner,)
        fits = others == [...] or len(value) == 1 + len(others)
        if inner is None or not fits or not all(type(item) in kinds for item in value):
            raise ConfigError(f"{where} is {list(value)!r}; expected {_describe(kind)}")
        return tuple(inner(item) for item in value)
    if isinstance(value, Mapping):
        if "Mapping" not in text:
            raise ConfigError(f"{where} is a table; expected {_describe(kind)}")
        accepted, expected = next((types for name, types in _MAPPINGS.items() if name in text), _PLAIN)
        if not all(type(item) in accepted for item in value.values()):
            raise ConfigError(f"{where} is {dict(value)!r}; expected {expected}")
        return dict(value)
    if value is None and "None" in text:
        return None
    if kind is float and type(value) is int:
        return float(value)
    literal = getattr(kind, "__args__", ()) if text.startswith("typing.Literal") else ()
    if literal:
        if value not in literal:
            raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(map(str, literal))}")
        return value
    possible = kind.__args__ if isinstance(kind, UnionType) else (kind,)
    if type(value) not in possible:
        raise ConfigError(f"{where} is {value!r}; expected {_describe(kind)}")
    if type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{where} is {value!r}; expected a finite number")
    return value


def _describe(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
