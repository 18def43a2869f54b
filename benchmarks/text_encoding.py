"""Titles encoded per CPU-second at each precision, and the cost of ten new items in a large catalogue.

One thread, the CPU seconds of this process (other programs on the machine do not count). The titles are those of the
bundled Online Retail data, or of a file with one text a line. "in all" counts loading the libraries and the model, and
for int8, the first time, making its graph.

    OMP_NUM_THREADS=1 python benchmarks/text_encoding.py [--texts FILE] [--catalogue 100000] [--json FILE]
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch loads its BLAS

import torch

from palate.data.sources import load
from palate.encoders.text import TextConfig, encode_texts
from palate.encoders.text_backends import BACKENDS
from palate.encoders.text_cache import VectorTable, add_vectors, read_vectors

NUM_REPEATS, WIDTH, NUM_NEW = 3, 384, 10


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def encoding(texts: list[str], precision: str) -> dict[str, float]:
    """Encode `texts` with an empty cache; the cost of everything but the texts is that of a run with one other text."""
    with tempfile.TemporaryDirectory() as folder:
        config = TextConfig(precision=precision, cache_dir=folder)  # type: ignore[arg-type]
        first = seconds(lambda: encode_texts(["a text that is not in the list"], config))
    net, gross = [], []
    for _ in range(NUM_REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            config = TextConfig(precision=precision, cache_dir=folder)  # type: ignore[arg-type]
            encode_texts(["a text that is not in the list"], config)  # leaves the int8 graph in the cache
            loading = seconds(lambda config=config: encode_texts(["nor is this one"], config))
            total = seconds(lambda config=config: encode_texts(texts, config))
            net.append(len(texts) / (total - loading))
            gross.append(len(texts) / total)
    return {"titles_per_s": max(net), "titles_per_s_with_loading": max(gross), "first_text_s": first}


def addition(size: int) -> dict[str, float]:
    """Cache `size` vectors, then ten more."""
    keys = [number.to_bytes(32, "big") for number in range(size + NUM_NEW)]
    vectors = torch.randn(size + NUM_NEW, WIDTH, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        add_vectors(folder, VectorTable({key: row for row, key in enumerate(keys[:size])}, vectors[:size]))
        before = sum(file.stat().st_size for file in folder.iterdir())
        new = VectorTable({key: row for row, key in enumerate(keys[size:])}, vectors[size:])
        write = seconds(lambda: add_vectors(folder, new))
        after = sum(file.stat().st_size for file in folder.iterdir())
        return {"write_s": write, "read_all_s": seconds(lambda: read_vectors(folder)), "written_bytes": after - before}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--catalogue", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.texts:
        texts = sorted(set(arguments.texts.read_text(encoding="utf-8").splitlines()))
    else:
        texts = sorted(set(load("online-retail").items.titles().values()))
    rows = {}
    print(f"{len(texts):,} distinct texts, one thread, PyTorch {torch.__version__}")
    for precision in BACKENDS:
        row = rows[precision] = encoding(texts, precision)
        print(
            f"{precision:<9} {row['titles_per_s']:6.0f} a CPU-second, {row['titles_per_s_with_loading']:6.0f} in all; "
            f"the very first text takes {row['first_text_s']:.1f} s",
            flush=True,
        )
    row = rows["cache"] = addition(arguments.catalogue)
    print(
        f"{NUM_NEW} new items beside {arguments.catalogue:,}: write {row['write_s'] * 1e3:.1f} ms and "
        f"{row['written_bytes']:,.0f} bytes, read all {row['read_all_s'] * 1e3:.0f} ms"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
