"""Batches of event sequences: whole histories cut into overlapping tiles, tiles of like length side by side.

A history of any length is read in full every epoch: it is cut into tiles of at most `max_events` events, each of
which reads one event more as its last target, and the cuts fall elsewhere in each epoch, so that every event is in
turn near the beginning and near the end of what is read. Tiles are bucketed by length up to a fixed number of tokens a
batch, which leaves next to no padding (see `padding_share`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from palate.data.event_log import EventLog
from palate.errors import ConfigError, DataError


class Batch(NamedTuple):
    """Tiles of many people, left-aligned; padding has item 0 and mask False.

    Position 0 stands for the person before the first event of the tile, position n for the time after its n-th event.
    Optional columns are None where the log does not have them.
    """

    items: Int64[Tensor, "row event"]
    mask: Bool[Tensor, "row event"]
    from_start: Bool[Tensor, "row"]
    """Whether the tile begins with the person's first event."""
    users: Int64[Tensor, "row"]
    """The person of each tile."""
    targets: Int64[Tensor, "row position target"]
    """Items to come after each position, the next one first."""
    weights: Float[Tensor, "row position target"]
    """Weights of the targets; all 0 where nothing is to be predicted."""
    seconds: Float64[Tensor, "row event"] | None = None
    kinds: Int64[Tensor, "row event"] | None = None
    values: Float32[Tensor, "row event"] | None = None
    next_seconds: Float64[Tensor, "row position"] | None = None
    """Time of the next event, for heads that predict it; no more of it than whether it comes in another visit is
    ever an input, which whoever asks for a list knows too."""
    next_kinds: Int64[Tensor, "row position"] | None = None
    next_values: Float32[Tensor, "row position"] | None = None
    profiles: Float32[Tensor, "row profile"] | None = None
    """What is known of each tile's person."""

    def rows(self, start: int, stop: int) -> "Batch":
        """Some of the tiles."""
        return Batch(*(None if column is None else column[start:stop] for column in self))  # type: ignore[arg-type]

    def num_targets(self) -> int:
        """Positions that bear loss."""
        return int((self.weights.sum(-1) > 0).sum())


class Tile(NamedTuple):
    """A stretch of one person's events: start ≤ place < stop are read, `stop` itself is the last target."""

    user: int
    start: int
    stop: int
    turn: int = 0
    """Where the sample of all that follows begins; see `BatchConfig.even_start`."""


@dataclass(frozen=True)
class BatchConfig:
    """How histories become batches."""

    tokens: int = 4096
    """Events of a batch, at most; a single tile is never cut for it."""
    window: int = 1
    """How many of the items to come are targets of a position."""
    decay: float = 0.5
    """Weight of each target relative to the one before it; with window = 1 it has no part."""
    first_tile: bool = False
    """Whether people are read from their first event on and for one tile alone: of someone with a long history no more
    is learned than of others, and all of it as a newcomer's."""
    even_start: bool = False
    """Whether the targets before the first event are not the first ones but `window` of all the person's events, spread
    evenly, others in each epoch, and of equal weight: what a list without events is judged by."""

    def __post_init__(self) -> None:
        for name in ("tokens", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"batches.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"batches.decay is {self.decay}; it must be in (0, 1]")


class BatchSource:
    """An epoch's batches, as a pure function of (seed, epoch); the log may be mapped from the disk.

    Raises:
        DataError: nobody has an event to predict.
    """

    def __init__(
        self,
        log: EventLog,
        config: BatchConfig,
        max_events: int,
        *,
        profiles: Float32[np.ndarray, "user profile"] | None = None,
        users: Int64[np.ndarray, "chosen"] | None = None,
    ) -> None:
        """Read the people `users` of a log, by default all, in tiles of up to `max_events`, which is the model's.

        `profiles` has a row for everyone, by default the log's.
        """
        self.log = log
        self.config = config
        self.max_events = max_events
        self.profiles = log.profiles if profiles is None else profiles
        people = np.arange(log.num_users) if users is None else np.asarray(users, np.int64)
        self.users = people[log.lengths()[people] >= 1]
        if len(self.users) == 0:
            raise DataError("batches: no person has an event; add interactions")

    def plan(self, seed: int, epoch: int) -> list[list[Tile]]:
        """Cut, bucket and shuffle: one list of tiles a batch."""
        rng = np.random.default_rng([seed, epoch])
        width = self.max_events
        lengths = self.log.lengths()[self.users]
        tiles: list[Tile] = []
        # A tile that reads n events has n + 1 targets from a person's start, n elsewhere; one who is read from the
        # start has room for `width` events before the last target.
        offsets = np.where(lengths > width + 1, rng.integers(0, width, len(lengths)), 0)
        reach = lengths
        if self.config.first_tile:
            offsets, reach = np.zeros_like(lengths), np.minimum(lengths, width + 1)
        turns = rng.integers(0, lengths) if self.config.even_start else np.zeros_like(lengths)
        for user, length, offset, turn in zip(
            self.users.tolist(), reach.tolist(), offsets.tolist(), turns.tolist(), strict=True
        ):
            cuts = range(offset - width if offset else 0, max(length - 1, 1), width)
            tiles += [Tile(user, max(cut, 0), min(cut + width, length - 1), turn) for cut in cuts]
        order = rng.permutation(len(tiles))
        sizes = np.fromiter((tile.stop - tile.start for tile in tiles), np.int64, len(tiles))
        order = order[np.argsort(sizes[order], kind="stable")]
        batches: list[list[Tile]] = [[]]
        for place in order.tolist():
            if batches[-1] and (len(batches[-1]) + 1) * (sizes[place] + 1) > self.config.tokens:
                batches.append([])
            batches[-1].append(tiles[place])
        return [batches[place] for place in rng.permutation(len(batches)).tolist()]

    def load(self, plan: list[Tile]) -> Batch:
        """Read the tiles of one batch."""
        log, config = self.log, self.config
        begins = log.offsets[[tile.user for tile in plan]]
        starts = begins + [tile.start for tile in plan]
        stops = begins + [tile.stop for tile in plan]
        ends = log.offsets[[tile.user + 1 for tile in plan]]
        sizes = stops - starts
        width = max(int(sizes.max()), 1)
        places = starts[:, None] + np.arange(width)
        mask = np.arange(width) < sizes[:, None]
        inside = np.where(mask, places, starts[:, None])
        from_start = np.array([tile.start == 0 for tile in plan])

        # Position n predicts the events from n on, counted within the tile; the last target is event `stop`.
        ahead = starts[:, None, None] + np.arange(width + 1)[:, None] + np.arange(config.window)
        counts = (ahead <= stops[:, None, None]) & (ahead < ends[:, None, None])
        counts &= from_start[:, None, None] | (np.arange(width + 1) > 0)[:, None]
        counts &= counts[..., :1]  # no next event, no prediction
        following = ahead[..., 0].copy()
        weights = counts * config.decay ** np.arange(config.window)
        if config.even_start:
            # Every window-th event from `turn` on, round the end of the history: each is as likely as any other.
            lengths, turns = ends - begins, np.array([tile.turn for tile in plan])
            number = np.minimum(lengths, config.window)[:, None]
            places = turns[:, None] + np.arange(config.window) * lengths[:, None] // number
            ahead[from_start, 0] = (begins[:, None] + places % lengths[:, None])[from_start]
            counts[from_start, 0] = (np.arange(config.window) < number)[from_start]
            weights[from_start, 0] = counts[from_start, 0]
        weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)
        chosen = np.where(counts, ahead, starts[:, None, None])
        following = np.where(counts[..., 0], following, starts[:, None])

        def read(column: np.ndarray | None, at: np.ndarray, valid: np.ndarray, dtype: type) -> Tensor | None:
            return None if column is None else torch.from_numpy(np.where(valid, column[at], 0).astype(dtype))

        items = read(log.items, inside, mask, np.int64)
        targets = read(log.items, chosen, counts, np.int64)
        assert items is not None
        assert targets is not None
        return Batch(
            items,
            torch.from_numpy(mask),
            torch.from_numpy(from_start),
            torch.tensor([tile.user for tile in plan]),
            targets,
            torch.from_numpy(weights.astype(np.float32)),
            read(log.seconds, inside, mask, np.float64),
            read(log.kinds, inside, mask, np.int64),
            read(log.values, inside, mask, np.float32),
            read(log.seconds, following, counts[..., 0], np.float64),
            read(log.kinds, following, counts[..., 0], np.int64),
            read(log.values, following, counts[..., 0], np.float32),
            None if self.profiles is None else torch.from_numpy(self.profiles[[tile.user for tile in plan]]),
        )


def inputs(
    log: EventLog,
    max_events: int,
    profiles: Float32[np.ndarray, "user profile"] | None = None,
    returning: Bool[np.ndarray, "user"] | None = None,
) -> Batch:
    """Everyone's most recent events as one batch without targets: what a model reads to recommend.

    `returning` says for whom what comes next belongs to another visit than the last event; by default for nobody.
    """
    recent = log.recent(max_events)
    sizes = recent.lengths()
    width = max(int(sizes.max(initial=0)), 1)
    mask = np.arange(width) < sizes[:, None]

    def spread(column: np.ndarray | None, dtype: type) -> Tensor | None:
        if column is None:
            return None
        table: np.ndarray[Any, Any] = np.zeros(mask.shape, dtype)
        table[mask] = column
        return torch.from_numpy(table)

    items, seconds = spread(recent.items, np.int64), spread(recent.seconds, np.float64)
    assert items is not None
    rows = len(sizes)
    following = None
    if seconds is not None:
        following = torch.cat([seconds, torch.zeros(rows, 1, dtype=torch.float64)], 1)
        people, last = torch.arange(rows), torch.from_numpy(sizes)
        following[people, last] = seconds[people, (last - 1).clamp_min(0)]  # the list is asked for right away
        if returning is not None:
            later = torch.from_numpy(returning)
            following[people[later], last[later]] = torch.inf
    known = log.profiles if profiles is None else profiles
    return Batch(
        items,
        torch.from_numpy(mask),
        torch.from_numpy(log.lengths() <= max_events),
        torch.arange(rows),
        torch.zeros(rows, width + 1, 1, dtype=torch.int64),
        torch.zeros(rows, width + 1, 1),
        seconds,
        spread(recent.kinds, np.int64),
        spread(recent.values, np.float32),
        following,
        profiles=None if known is None else torch.from_numpy(np.array(known)),  # a mapped file is read-only
    )


def padding_share(source: BatchSource, seed: int = 0) -> float:
    """Share of an epoch's tokens that are padding."""
    plans = source.plan(seed, 0)
    real = sum(tile.stop - tile.start for plan in plans for tile in plan)
    read = sum(len(plan) * max(tile.stop - tile.start for tile in plan) for plan in plans)
    return 1 - real / max(read, 1)
