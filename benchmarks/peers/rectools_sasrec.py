"""RecTools' SASRec as `backbone.py` runs it, inside RecTools' own environment (MobileTeleSystems/RecTools, 0.19).

Reads one .npz (`items`, `offsets`, `num_items`: the training sequences, oldest event first), trains, and writes after
each epoch a line of JSON: CPU seconds of training so far, and a file with the scores of every item for every person.
Scoring is outside the clock.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Clock(Callback):
    """Adds up the CPU time of training, and scores everyone after each epoch."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer, module) -> None:
        self.started, self.batches = time.process_time(), 0

    def on_train_batch_end(self, *_) -> None:
        self.batches += 1

    def on_train_epoch_end(self, trainer, module) -> None:
        self.seconds += time.process_time() - self.started
        # Counted, not taken from the argument: Lightning rounds a share down to whole batches, and may be interrupted.
        share = self.batches / len(trainer.train_dataloader)
        line = {"epoch": trainer.current_epoch + 1, "cpu_seconds": self.seconds, "share": share}
        if self.arguments.share == 1:  # a part of an epoch is timed alone
            line["scores"] = f"scores-{trainer.current_epoch + 1}.npy"
            np.save(self.arguments.out / line["scores"], self.score(module))
        print(json.dumps(line), flush=True)

    @torch.no_grad()
    def score(self, module) -> np.ndarray:
        with np.load(self.arguments.data) as file:
            shown, offsets, num_items = file["items"], file["offsets"], int(file["num_items"])
        known = np.isin(np.arange(num_items), module.data_preparator.get_known_item_ids())
        # Theirs starts with the padding; what training lacks stays at it.
        internal = np.zeros(num_items, np.int64)
        internal[known] = module.data_preparator.item_id_map.convert_to_internal(np.flatnonzero(known))
        length = self.arguments.length
        module.eval()
        items = module.torch_model.item_model.get_all_embeddings()
        rows = []
        for start in range(0, len(offsets) - 1, 128):
            batch = np.zeros((min(128, len(offsets) - 1 - start), length), np.int64)
            for row in range(len(batch)):
                first, stop = offsets[start + row : start + row + 2]
                last = internal[shown[max(first, stop - length) : stop]]
                batch[row, length - len(last) :] = last
            states = module.torch_model.encode_sessions({"x": torch.from_numpy(batch)}, items)[:, -1]
            scores = np.full((len(batch), num_items), -np.inf, np.float32)
            scores[:, known] = (states @ items.T).numpy()[:, internal[known]]
            rows.append(scores)
        module.train()
        return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--loss", choices=("softmax", "sampled_softmax", "BCE", "gBCE"), default="softmax")
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="share of an epoch's batches that is run")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    data = np.load(arguments.data)
    lengths = np.diff(data["offsets"])
    order = np.arange(len(data["items"])) - np.repeat(data["offsets"][:-1], lengths)
    events = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(lengths)), lengths),
            Columns.Item: data["items"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp(0) + pd.to_timedelta(order, unit="s"),
        }
    )
    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=arguments.width,
        session_max_len=arguments.length,
        loss=arguments.loss,
        n_negatives=arguments.negatives,
        batch_size=arguments.batch,
        epochs=arguments.epochs,
        recommend_torch_device="cpu",
        get_trainer_func=lambda: Trainer(
            max_epochs=arguments.epochs,
            limit_train_batches=arguments.share,
            accelerator="cpu",
            callbacks=[Clock(arguments)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
    )
    model.fit(Dataset.construct(events))


if __name__ == "__main__":
    main()
