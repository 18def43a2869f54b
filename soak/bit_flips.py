"""Flip single bits of a signed model folder, and ask that each is refused before the model is used.

    python soak/bit_flips.py [--model MODEL] [--flips 10000]

A copy of the model is signed and its files are flipped in place: a random bit of a random byte, in each file about as
often, the signature and the manifest too. Refused means a ModelError of one line; any other end fails the run. Without
--model a small one is trained on made-up data.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from palate.backbone.batches import BatchConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.config import Config
from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.log import validate_interactions
from palate.errors import ModelError
from palate.meta.evidence import EvidenceConfig
from palate.meta.training import MetaConfig
from palate.pipeline import train
from palate.recommend import Recommender


def small_model() -> Recommender:
    """Trained in seconds on 80 people of two tastes."""
    rng = np.random.default_rng(0)
    rows = [
        (f"user-{user}", f"item-{user % 2}-{item}", "purchase", 86_400.0 * day)
        for user in range(80)
        for day, item in enumerate(rng.integers(0, 20, 12))
    ]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "event_type", "timestamp"], orient="row")
    names = [f"item-{taste}-{item}" for taste in range(2) for item in range(20)]
    catalog = pl.DataFrame({"item_id": names, "title": names, "price": rng.lognormal(2, 0.5, 40)})
    people = pl.DataFrame({"user_id": [f"user-{user}" for user in range(80)], "age": rng.uniform(20, 60, 80)})
    config = Config(
        num_members=1,
        model=SequenceModelConfig(dim=16, num_layers=1, max_events=16),
        batches=BatchConfig(tokens=256, window=8),
        training=TrainingConfig(num_epochs=1, warmup_steps=5),
        evidence=EvidenceConfig(rank=8, content_dim=8),
        meta=MetaConfig(
            support_sizes=(0, 1, 3), min_items=6, min_query=3, num_steps=5, batch_size=16, validate_every=5
        ),
    )
    interactions = validate_interactions(log.with_columns(pl.from_epoch("timestamp")), source="made up")
    return train(Dataset("made up", interactions, Catalog.infer(catalog), Profiles.infer(people)), config)


def flip(file: Path, rng: random.Random, trusted: Ed25519PublicKey) -> str | None:
    """Flip one bit, load, flip it back; return what was wrong with the refusal."""
    with file.open("r+b", buffering=0) as raw:
        place, bit = rng.randrange(file.stat().st_size), rng.randrange(8)
        [byte] = os.pread(raw.fileno(), 1, place)
        os.pwrite(raw.fileno(), bytes([byte ^ 1 << bit]), place)
        try:
            Recommender.load(file.parent, trusted)
        except ModelError as error:
            wrong = None if len(str(error).splitlines()) == 1 else f"said {error}"
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        else:
            wrong = "was loaded"
        finally:
            os.pwrite(raw.fileno(), bytes([byte]), place)
    return None if wrong is None else f"{file.name}, byte {place}, bit {bit}: {wrong}"


def main() -> None:
    """Sign, flip, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, key = random.Random(options.seed), Ed25519PrivateKey.generate()
    model = small_model() if options.model is None else Recommender.load(options.model)
    with tempfile.TemporaryDirectory(prefix="palate-flips-") as scratch:
        folder = Path(scratch) / "model"
        model.save(folder, key)
        files = sorted(folder.iterdir())
        before = {file.name: file.read_bytes() for file in files}
        flips: Counter[str] = Counter()
        faults: list[str] = []
        start = time.monotonic()
        for _ in range(options.flips):
            file = rng.choice(files)
            flips[file.name] += 1
            fault = flip(file, rng, key.public_key())
            if fault is not None:
                faults.append(fault)
        seconds = time.monotonic() - start
        assert before == {file.name: file.read_bytes() for file in files}, "a bit was not flipped back"
        Recommender.load(folder, key.public_key())
    for name, number in sorted(flips.items()):
        missed = sum(fault.startswith(f"{name},") for fault in faults)
        print(f"{name:20} {len(before[name]):>10,} bytes {number:>7,} flips {number - missed:>7,} refused")
    refused = options.flips - len(faults)
    print(f"{refused:,} of {options.flips:,} bit flips refused, {seconds / max(1, options.flips) * 1e3:.1f} ms each")
    for fault in faults[:10]:
        print(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
