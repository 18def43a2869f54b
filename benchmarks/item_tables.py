"""What item tables cost and what compression costs: memory and CPU time of a step, and next-item quality.

    python benchmarks/item_tables.py speed                          (10⁶ and 10⁷ items; needs 6 GB)
    python benchmarks/item_tables.py quality SEQUENCES ATTRIBUTES   (next-item task, full ranking, one line a table)
    python benchmarks/item_tables.py cold SEQUENCES ATTRIBUTES      (a tenth of the items has no training events)

SEQUENCES: a text file, a user a line (the user, then items in time order), or Parquet with user_id, position, item_id.
ATTRIBUTES: JSON, item to a list of values, or Parquet with item_id and columns of text. Times are CPU seconds.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from palate.backbone.item_tables import ItemTableConfig, build_item_table
from palate.backbone.semantic_ids import Codes, SemanticIdConfig, code_usage, encode, fit_semantic_ids
from palate.backbone.table_kinds import ItemTable

DIM, WINDOW, NUM_NEGATIVES, BATCH = 64, 20, 1024, 512
TOKENS = 4096


class Task(NamedTuple):
    """Histories of item numbers, the last of each held out, and content vectors of the items."""

    histories: list[list[int]]
    content: Tensor


def read_task(sequences: Path, attributes: Path) -> Task:
    """Items are numbered in the order of their first appearance."""
    if sequences.suffix == ".parquet":
        frame = pl.read_parquet(sequences).sort("user_id", "position")
        rows = frame.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    else:
        rows = [line.split()[1:] for line in sequences.read_text().splitlines()]
    number: dict[str, int] = {}
    histories = [[number.setdefault(str(item), len(number)) for item in row] for row in rows]
    if attributes.suffix == ".parquet":
        items = pl.read_parquet(attributes).with_columns(pl.col("item_id").cast(pl.String))
        texts = {row[0]: " ".join(str(value) for value in row[1:]) for row in items.iter_rows()}
    else:
        texts = {item: " ".join(f"a{v}" for v in values) for item, values in json.loads(attributes.read_text()).items()}
    matrix = TfidfVectorizer(min_df=2).fit_transform([texts.get(item, "") for item in number])
    content = torch.from_numpy(TruncatedSVD(DIM, random_state=0).fit_transform(matrix)).float()
    return Task(histories, F.normalize(content, dim=1))


class NextItem(nn.Module):
    """State = a linear layer of the last item and of the mean of the last WINDOW items, over one shared table."""

    def __init__(self, table: ItemTable) -> None:
        super().__init__()
        self.table = table
        self.mix = nn.Linear(2 * DIM, DIM)
        self.bias = nn.Parameter(torch.zeros(table.num_items))

    def forward(self, windows: Tensor) -> Tensor:
        """`windows`: item numbers, the last item last, −1 where the history is shorter."""
        mask = (windows >= 0).float()[..., None]
        vectors = self.table(windows.clamp_min(0)) * mask
        mean = vectors.sum(1) / mask.sum(1).clamp_min(1)
        state: Tensor = self.mix(F.dropout(torch.cat([vectors[:, -1], mean], 1), 0.3, self.training))
        return state


def windows_of(histories: list[list[int]]) -> Tensor:
    """The last WINDOW items of each history, padded in front."""
    rows = np.full((len(histories), WINDOW), -1, np.int64)
    for row, history in enumerate(histories):
        if history:
            rows[row, -len(history[-WINDOW:]) :] = history[-WINDOW:]
    return torch.from_numpy(rows)


def steps_of(histories: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Every next item of every history, with the window before it."""
    windows, targets = [], []
    for history in histories:
        padded = np.array([-1] * WINDOW + history, np.int64)
        windows.append(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[1:-1])
        targets.append(padded[WINDOW + 1 :])
    return torch.from_numpy(np.concatenate(windows)), torch.from_numpy(np.concatenate(targets))


def train(table: ItemTable, histories: list[list[int]], steps: int, seed: int) -> NextItem:
    """Sampled softmax against uniform negatives, Adam, learning rate falling to 0."""
    torch.manual_seed(seed)
    model = NextItem(table)
    windows, targets = steps_of(histories)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = np.random.default_rng(seed)
    for step in range(steps):
        chosen = generator.integers(0, len(targets), BATCH)
        target = targets[chosen]
        negatives = torch.from_numpy(generator.integers(0, table.num_items, NUM_NEGATIVES))
        state = model(windows[chosen])
        positive = (state * table(target)).sum(1, keepdim=True) + model.bias[target, None]
        logits = state @ table(negatives).T + model.bias[negatives]
        logits = logits.masked_fill(negatives == target[:, None], -torch.inf)
        loss = F.cross_entropy(torch.cat([positive, logits], 1), torch.zeros(BATCH, dtype=torch.int64))
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def ranks(
    model: NextItem, histories: list[list[int]], targets: list[int], among: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Number of unseen items in `among` that score at least as high as each target, the target itself left out."""
    found = []
    with torch.no_grad():
        vectors = model.table.all()
        for start in range(0, len(histories), BATCH):
            part = histories[start : start + BATCH]
            scores = model(windows_of(part)) @ vectors.T + (model.bias if bias is None else bias)
            seen = torch.zeros_like(scores, dtype=torch.bool)
            for row, history in enumerate(part):
                seen[row, history] = True
            target = torch.tensor(targets[start : start + BATCH])
            own = scores.gather(1, target[:, None])
            found.append((((scores >= own) & ~seen)[:, among]).sum(1) - 1)
    return torch.cat(found)


def ndcg_and_hits(place: Tensor, k: int = 10) -> tuple[float, float]:
    gain = (1 / (place.float() + 2).log2()).where(place < k, 0.0)
    return gain.mean().item(), (place < k).float().mean().item()


def codes_of(content: Tensor, size: int) -> Codes:
    """Three levels; what has the same codes is told apart by the table's hashed rows, or not at all."""
    return Codes(fit_semantic_ids(content, SemanticIdConfig(codebook_size=size)).codes, (size,) * 3)


def codebook_size(num_items: int, compression: int, share: float) -> int:
    """The power of two, 256 at most, whose three codebooks take at most `share` of the rows."""
    return 2 ** min(8, int(math.log2(num_items / compression * share / 3)))


def quality(task: Task, steps: int, seeds: int) -> None:
    num_items = len(task.content)
    settings: list[tuple[str, ItemTableConfig, int | None]] = [("full", ItemTableConfig(), None)]
    for c in (4, 16):
        settings += [
            (f"quotient /{c}", ItemTableConfig("quotient", c), None),
            (f"hashed 2 /{c}", ItemTableConfig("hashed", c), None),
            (f"semantic + 1 hash /{c}", ItemTableConfig("semantic", c, 1), codebook_size(num_items, c, 0.5)),
        ]
    settings.append(("semantic alone /16", ItemTableConfig("semantic", 16, 0), codebook_size(num_items, 16, 0.9)))
    people = [history for history in task.histories if len(history) >= 3]
    print(
        f"{num_items:,} items, {len(people):,} people, {steps} steps, {seeds} seeds; full ranking, seen items removed"
    )
    for name, config, size in settings:
        codes = None if size is None else codes_of(task.content, size)
        figures, seconds = [], 0.0
        for seed in range(seeds):
            torch.manual_seed(seed)
            table = build_item_table(config, num_items, DIM, codes)
            start = time.process_time()
            model = train(table, [history[:-1] for history in people], steps, seed)
            seconds += time.process_time() - start
            judged = people[:10_000]
            place = ranks(model, [h[:-1] for h in judged], [h[-1] for h in judged], torch.arange(num_items))
            figures.append(ndcg_and_hits(place))
        count = sum(weight.numel() for weight in table.parameters())
        mean, spread = np.mean(figures, 0), np.ptp(figures, 0)
        print(
            f"{name:<22} {count:>9,} numbers (1/{num_items * DIM / count:.1f})  NDCG@10 {mean[0]:.4f}"
            f" ±{spread[0] / 2:.4f}  HR@10 {mean[1]:.4f} ±{spread[1] / 2:.4f}  {seconds / seeds:.0f} s",
            flush=True,
        )


def cold(task: Task, steps: int, seeds: int) -> None:
    """Train without a random tenth of the items, grow the table to them, and rank them alone for whom they are next."""
    num_items = len(task.content)
    order = np.random.default_rng(0).permutation(num_items)
    number = np.empty(num_items, np.int64)
    number[order] = np.arange(num_items)
    content, warm = task.content[torch.from_numpy(order)], num_items - num_items // 10
    histories = [[int(number[item]) for item in history] for history in task.histories]
    training = [[item for item in history[:-1] if item < warm] for history in histories]
    asked = [(t, h[-1]) for t, h in zip(training, histories, strict=True) if h[-1] >= warm and t]
    size = codebook_size(warm, 4, 0.5)
    ids = fit_semantic_ids(content[:warm], SemanticIdConfig(codebook_size=size))
    before = Codes(ids.codes, (size,) * 3)
    after = Codes(torch.cat([ids.codes, encode(ids.codebooks, content[warm:])]), before.sizes)
    among = torch.arange(warm, num_items)
    print(
        f"{len(asked):,} people whose next item is one of {len(among):,} without events; chance {10 / len(among):.4f}"
    )
    for name, config in (
        ("full", ItemTableConfig()),
        ("semantic + 1 hash /4", ItemTableConfig("semantic", 4, 1)),
        ("semantic alone /4", ItemTableConfig("semantic", 4, 0)),
    ):
        figures = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            reads = name.startswith("semantic")
            table = build_item_table(config, warm, DIM, before if reads else None)
            model = train(table, training, steps, seed)
            model.table = model.table.grow(num_items, after if reads else None)
            place = ranks(model, [h for h, _ in asked], [t for _, t in asked], among, bias=torch.zeros(num_items))
            figures.append(ndcg_and_hits(place))
        mean = np.mean(figures, 0)
        print(f"{name:<22} NDCG@10 {mean[0]:.4f}  HR@10 {mean[1]:.4f}", flush=True)


def speed() -> None:
    """A step's lookup and backward of TOKENS random items, and what the table holds; the best of 5 after a warm-up."""
    for num_items in (10**6, 10**7):
        generator = torch.Generator().manual_seed(0)
        codes = Codes(torch.randint(256, (num_items, 4), generator=generator), (256,) * 4)
        makers: dict[str, Callable[[], nn.Module]] = {
            "nn.Embedding": lambda n=num_items: nn.Embedding(n, DIM),
            "nn.Embedding, sparse": lambda n=num_items: nn.Embedding(n, DIM, sparse=True),
            "full": lambda n=num_items: build_item_table(ItemTableConfig(), n, DIM),
        }
        for c in (4, 16):
            makers |= {
                f"quotient /{c}": lambda n=num_items, c=c: build_item_table(ItemTableConfig("quotient", c), n, DIM),
                f"hashed 2 /{c}": lambda n=num_items, c=c: build_item_table(ItemTableConfig("hashed", c), n, DIM),
                f"semantic + 1 hash /{c}": lambda n=num_items, c=c, codes=codes: build_item_table(
                    ItemTableConfig("semantic", c, 1), n, DIM, codes
                ),
            }
        makers["semantic alone"] = lambda n=num_items, codes=codes: build_item_table(
            ItemTableConfig("semantic", 16, 0), n, DIM, codes
        )
        for name, make in makers.items():
            table = make()
            stored = sum(t.numel() * t.element_size() for t in (*table.parameters(), *table.buffers())) / 1e6
            forward, backward = [], []
            for _ in range(6):
                items = torch.randint(num_items, (TOKENS,), generator=generator)
                table.zero_grad()
                start = time.process_time()
                vectors = table(items)
                middle = time.process_time()
                vectors.square().sum().backward()
                forward.append(middle - start)
                backward.append(time.process_time() - middle)
            print(
                f"{num_items:>10,}  {name:<22} {stored:8.1f} MB   lookup {1e3 * min(forward[1:]):8.2f} ms"
                f"   backward {1e3 * min(backward[1:]):8.2f} ms",
                flush=True,
            )
            del table, vectors


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "quality", "cold"))
    parser.add_argument("files", nargs="*", type=Path, help="SEQUENCES ATTRIBUTES")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    if given.what == "speed":
        speed()
        return
    if len(given.files) != 2:
        parser.error(f"{given.what} reads two files: SEQUENCES ATTRIBUTES")
    task = read_task(*given.files)
    if given.what == "quality":
        ids = fit_semantic_ids(task.content, SemanticIdConfig())
        errors, usage = ids.errors.tolist(), code_usage(ids.codes).tolist()
        distinct = len(ids.codes.unique(dim=0)) / len(ids.codes)
        print(f"3 × 256 codes: error {errors}, perplexity {usage}, distinct ids {distinct:.3f}")
        quality(task, given.steps, given.seeds)
    else:
        cold(task, given.steps, given.seeds)


if __name__ == "__main__":
    main()
