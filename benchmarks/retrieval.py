"""How long the ten largest inner products take, by size, kind of vectors and kind of index.

Two worlds of 64 dimensions: "clustered", a truncated SVD of the log that --log names (columns user_id, item_id; e.g.
MovieLens-1M), its item vectors repeated with noise of 30 % of their norm and its users as queries, or without a log
planted clusters; and "iid", Gaussian vectors without any structure, the hardest case for lists. One query at a time,
one thread, CPU milliseconds; recall is that of the first ten against a float64 scan. numpy and faiss' flat index run
beside, and ratios are to them. Then the same with 10 % and with 1 % of the items allowed.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py [--log FILE.parquet] [--sizes 100000 1000000] [--json FILE]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when NumPy loads its BLAS

import faiss
import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from palate.errors import ConfigError
from palate.recommend.retrieval import INDEXES, RetrievalConfig, build_index

WIDTH, K, NUM_QUERIES, NUM_TUNING, NOISE = 64, 10, 200, 256, 0.3
SHARES = (None, 0.1, 0.01)


def measure(call: Callable[[np.ndarray], object], queries: np.ndarray) -> tuple[float, float]:
    """Median and 95th percentile of a query in CPU milliseconds, after a warm-up."""
    for query in queries[:20]:
        call(query)
    times = []
    for query in queries:
        start = time.process_time_ns()
        call(query)
        times.append((time.process_time_ns() - start) / 1e6)
    return float(np.median(times)), float(np.percentile(times, 95))


def factors(log: Path | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of people and items: of the log, or planted."""
    if log is None:
        centres = rng.normal(size=(3000, WIDTH)) * rng.lognormal(0, 0.5, (3000, 1))
        return centres[rng.integers(0, 3000, 6000)] + rng.normal(size=(6000, WIDTH)), centres
    frame = pl.read_parquet(log, columns=["user_id", "item_id"])
    user, item = (frame[name].rank("dense").to_numpy().astype(np.int64) - 1 for name in ("user_id", "item_id"))
    matrix = csr_matrix((np.ones(len(user), np.float32), (user, item)))
    left, strength, right = svds(matrix, WIDTH, v0=np.ones(min(matrix.shape), np.float32))
    return left * np.sqrt(strength), right.T * np.sqrt(strength)


def make_world(name: str, size: int, log: Path | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    count = NUM_QUERIES + NUM_TUNING
    if name == "iid":
        return rng.standard_normal((size, WIDTH), np.float32), rng.standard_normal((count, WIDTH), np.float32)
    people, items = factors(log, rng)
    vectors = items[rng.integers(0, len(items), size)].astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True) / np.sqrt(WIDTH)
    vectors += NOISE * norms * rng.standard_normal(vectors.shape, np.float32)
    return vectors, people[rng.choice(len(people), count, replace=False)].astype(np.float32)


def truth(vectors: np.ndarray, query: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    rough = vectors @ query
    if allowed is not None:
        rough[~allowed] = -np.inf
    near = np.argpartition(-rough, 4 * K)[: 4 * K]
    return near[np.argsort(-(vectors[near].astype(np.float64) @ query), kind="stable")[:K]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows = []
    for world in ("clustered", "iid"):
        for size in arguments.sizes:
            vectors, queries = make_world(world, size, arguments.log)
            queries, tuning = queries[:NUM_QUERIES], queries[NUM_QUERIES:]
            flat = faiss.IndexFlatIP(WIDTH)
            flat.add(vectors)

            def in_numpy(query: np.ndarray, vectors: np.ndarray = vectors) -> np.ndarray:
                return np.argpartition(-(vectors @ query), K)[:K]

            def in_faiss(query: np.ndarray, flat: faiss.IndexFlatIP = flat) -> object:
                return flat.search(query[None], K)

            peers = measure(in_numpy, queries[:60]), measure(in_faiss, queries[:60])
            print(
                f"\n{world}, {size:,} x {WIDTH}: numpy {peers[0][0]:.2f} ms, faiss flat {peers[1][0]:.2f} ms",
                flush=True,
            )
            draw = np.random.default_rng(1).random(size)
            masks = {share: None if share is None else draw < share for share in SHARES}
            true = {share: [truth(vectors, query, mask) for query in queries] for share, mask in masks.items()}
            for kind in ("auto", *INDEXES):
                start = time.process_time()
                try:
                    index = build_index(vectors, RetrievalConfig(kind), queries=tuning)
                except ConfigError as error:
                    print(f"  {kind:<6} {error}", flush=True)
                    continue
                built = time.process_time() - start
                for share, mask in masks.items():

                    def search(query: np.ndarray, index=index, mask=mask):
                        return index.search(query[None], K, allowed=mask)

                    found = [search(query).items[0] for query in queries]
                    recall = np.mean([np.isin(a, b).mean() for a, b in zip(true[share], found, strict=True)])
                    median, slow = measure(search, queries)
                    row = {
                        "world": world,
                        "size": size,
                        "kind": kind,
                        "engine": index.built.kind,
                        "effort": index.built.effort,
                        "allowed": share or 1.0,
                        "build_s": built,
                        "median_ms": median,
                        "p95_ms": slow,
                        "recall": float(recall),
                        "of_numpy": median / peers[0][0],
                        "of_faiss": median / peers[1][0],
                    }
                    rows.append(row)
                    print(
                        f"  {kind:<6}({row['engine']:<5} effort {row['effort']:>4}) build {built:5.1f} s"
                        f"  allowed {row['allowed']:4.0%}  median {median:6.3f} ms  p95 {slow:6.3f} ms"
                        f"  recall {recall:.4f}  × numpy {row['of_numpy']:.2f}  × faiss flat {row['of_faiss']:.2f}",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
