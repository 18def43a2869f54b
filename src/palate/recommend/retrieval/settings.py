"""Settings of the retrieval of item vectors."""

from dataclasses import dataclass

from palate.errors import ConfigError


@dataclass(frozen=True)
class RetrievalConfig:
    """Which index answers, how close to exact it must come, and when it is built anew."""

    kind: str = "auto"
    """A line of `INDEXES`, or "auto": exact up to `exact_until` numbers; above, the first kind that reaches
    `target_recall` within its efforts (ivf, pq), or else exact."""

    exact_until: int = 12_800_000
    """Up to so many numbers in all vectors "auto" is exact, since a scan reads every one: 200,000 items of 64
    dimensions take 0.4 ms, and 16,000 of 800 half of that."""

    dense_until: int = 8_192
    """Up to so many items a list scores every item in full precision, as fast there; above, the index is asked."""

    target_recall: float = 0.995
    """Share of the true first ten that an approximate index must find on the sample queries; the least effort (lists
    probed, candidates ranked again) that does is chosen when the index is built."""

    num_samples: int = 256
    """Queries on which the effort is chosen; a build costs this many exact searches, 2 to 3 ms each at a million."""

    num_lists: int | None = None
    """Lists of "ivf"; None: the power of two nearest to the root of the number of items."""

    exact_share: float = 0.1
    """Where filters leave less than this share of the items, those are scanned exactly whatever the kind."""

    rebuild_share: float = 0.2
    """Once items added and removed since the build exceed this share, the index is built anew without the removed."""

    seed: int = 0
    """Of the samples for training and tuning; the same vectors and seed give the same index."""

    def __post_init__(self) -> None:
        if self.exact_until < 0:
            raise ConfigError(f"retrieval.exact_until: got {self.exact_until}; expected 0 or more; try 12800000")
        if self.dense_until < 0:
            raise ConfigError(f"retrieval.dense_until: got {self.dense_until}; expected 0 or more; try 8192")
        if self.num_samples < 1:
            raise ConfigError(f"retrieval.num_samples: got {self.num_samples}; expected 1 or more; try 256")
        if self.num_lists is not None and self.num_lists < 1:
            raise ConfigError(f"retrieval.num_lists: got {self.num_lists}; expected 1 or more, or none for the default")
        if self.seed < 0:
            raise ConfigError(f"retrieval.seed: got {self.seed}; expected 0 or more")
        for name in ("target_recall", "exact_share", "rebuild_share"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"retrieval.{name}: got {value}; expected above 0 and at most 1")
