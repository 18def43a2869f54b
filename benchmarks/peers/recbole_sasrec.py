"""RecBole's SASRec as `backbone.py` runs it, inside RecBole's own environment (RUCAIBox/RecBole, 1.2).

RecBole makes a training sample of every prefix of every sequence, so one epoch takes hours on a core: a number of
batches is timed, and what an epoch would take is that time over the share of the batches. Reads one .npz (`items`,
`offsets`: all sequences; RecBole leaves the last two events of each out itself) and writes a line of JSON.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.utils import init_seed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--loss", choices=("CE", "BPR"), default="CE")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = np.load(arguments.data)
    lengths = np.diff(data["offsets"])
    users = np.repeat(np.arange(len(lengths)), lengths)
    order = np.arange(len(users)) - np.repeat(data["offsets"][:-1], lengths)
    (arguments.out / "events").mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "events" / "events.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        file.writelines(f"{u}\t{i}\t{t}\n" for u, i, t in zip(users, data["items"], order, strict=True))
    settings = {
        "data_path": str(arguments.out),
        "checkpoint_dir": str(arguments.out),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "use_gpu": False,
        "MAX_ITEM_LIST_LENGTH": arguments.length,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_size": arguments.width,
        "inner_size": arguments.width,  # as in the SASRec paper
        "hidden_dropout_prob": 0.2,
        "attn_dropout_prob": 0.2,
        "loss_type": arguments.loss,
        "train_neg_sample_args": None if arguments.loss == "CE" else {"distribution": "uniform", "sample_num": 1},
        "train_batch_size": arguments.batch,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "state": "ERROR",
    }
    config = Config(model="SASRec", dataset="events", config_dict=settings)
    init_seed(0, True)
    train, _, _ = data_preparation(config, create_dataset(config))
    model = SASRec(config, train.dataset)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    started = 0.0
    for number, batch in enumerate(train):
        if number == 1:  # the first batch warms up
            started = time.process_time()
        if number > arguments.batches:
            break
        optimiser.zero_grad()
        model.calculate_loss(batch).backward()
        optimiser.step()
    share = arguments.batches / (len(train.dataset) / arguments.batch)
    print(json.dumps({"epoch": 1, "cpu_seconds": time.process_time() - started, "share": share}), flush=True)


if __name__ == "__main__":
    main()
