"""CPU seconds of an epoch of SASRec on MovieLens-1M, and validation nDCG@10 against CPU time, beside other libraries.

Every library trains SASRec with width 64, 2 blocks, 2 heads and the last 200 events on one thread, on the sequences
without each person's last two events, and is judged on the second last by Palate's own code, with the items that a
person already had removed. Seconds are CPU time of the library's own process (`time.process_time`), training alone.
RecTools trains on each sequence once an epoch, with a target at every place; RecBole on every prefix as a sample of its
own, with one target, which takes hours: some batches are timed and the rest is extrapolated (`share` below 1). Palate
trains on every event of every history, in bfloat16, and anneals over `--epochs`.

    python benchmarks/backbone.py --data DIR --peers PEERS [--only "RecTools, full softmax"] [--epochs 2] [--json FILE]

`--data` is the folder of docs/sequential.md. The peers belong to no dependency list, and their pins must not bind
Palate's; each has an environment of its own below PEERS, and a missing one is printed as not installed:

    python -m venv PEERS/rectools && PEERS/rectools/bin/pip install torch==2.13.0
    PEERS/rectools/bin/pip install "rectools[torch]==0.19.0"
    python -m venv PEERS/recbole && PEERS/recbole/bin/pip install torch==2.13.0
    PEERS/recbole/bin/pip install "numpy<2" "pandas<3" "scipy<1.14" scikit-learn colorlog==4.7.2 colorama==0.4.4 \
        pyyaml tqdm tabulate tensorboard thop texttable psutil plotly
    PEERS/recbole/bin/pip install --no-deps recbole==1.2.1
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from palate.backbone.batches import BatchConfig, BatchSource, inputs
from palate.backbone.engine import train
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.baselines import Scorer
from palate.data.event_log import EventLog
from palate.evaluation.sequential.data import SequenceData, open_sequences
from palate.evaluation.sequential.leave_one_out import Held, figures, leave_one_out, rank_targets

Line = dict[str, Any]
"""epoch; cpu_seconds of training so far; share of the last epoch that was run; ndcg@10 on validation, where judged."""


class Peer(NamedTuple):
    """A library in an environment of its own."""

    environment: str
    """Folder below PEERS."""
    script: str
    """File in `peers/` beside this one."""
    settings: tuple[str, ...]
    reads_all: bool = False
    """Whether it is given the complete sequences, and leaves the last two events out itself."""
    many_epochs: bool = False
    """Whether `--epochs` counts; else a part of one epoch is timed."""


PALATE = "Palate, full softmax"
RECTOOLS, RECBOLE = ("rectools", "rectools_sasrec.py"), ("recbole", "recbole_sasrec.py")
PEERS: Mapping[str, Peer] = {
    "RecTools, full softmax": Peer(*RECTOOLS, ("--loss", "softmax"), many_epochs=True),
    "RecTools, 256 negatives": Peer(*RECTOOLS, ("--loss", "sampled_softmax", "--negatives", "256", "--share", "0.2")),
    "RecTools, 1 negative (BCE)": Peer(*RECTOOLS, ("--loss", "BCE", "--negatives", "1", "--share", "0.2")),
    "RecBole, full softmax": Peer(*RECBOLE, ("--loss", "CE", "--batches", "8"), reads_all=True),
    "RecBole, 1 negative (BPR)": Peer(*RECBOLE, ("--loss", "BPR", "--batches", "8"), reads_all=True),
}


def measure_peer(peer: Peer, environments: Path, data: SequenceData, epochs: int) -> list[Line]:
    """Train a peer in its own process, and judge what it scores after each epoch.

    Raises:
        FileNotFoundError: its environment is not there.
        CalledProcessError: it failed; its last lines are on standard error.
    """
    split = leave_one_out(data.log)
    shown = data.log if peer.reads_all else split.training
    python = environments / peer.environment / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(python)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.savez(folder / "events.npz", items=shown.items, offsets=shown.offsets, num_items=data.num_items)
        command = [str(python), str(Path(__file__).parent / "peers" / peer.script), *peer.settings]
        command += ["--data", str(folder / "events.npz"), "--out", scratch]
        command += ["--epochs", str(epochs)] if peer.many_epochs else []
        one_thread = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        said = subprocess.run(command, env=one_thread, stdout=subprocess.PIPE, text=True, check=True).stdout
        lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        for line in lines:
            if "scores" in line:
                # The peer was shown the training people, all of whom are judged here, in the same order.
                table = np.load(folder / line.pop("scores"), mmap_mode="r")[split.validation.users]
                line["ndcg@10"] = validation_ndcg(_recite(table), split.validation, data.num_items)
    return lines


def _scorer_of(model: SequenceModel) -> Scorer:
    def score(log: EventLog) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return model.eval().scores(inputs(log, model.config.max_events)).float().numpy()

    return score


def measure_palate(data: SequenceData, epochs: int) -> list[Line]:
    """Train Palate's sequence model at the same width, depth and length; judging is not on the clock."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    split = leave_one_out(data.log)
    counts = torch.from_numpy(np.bincount(split.training.items, minlength=data.num_items))
    model = SequenceModel(SequenceModelConfig(dim=64, num_layers=2, num_heads=2, max_events=200), Catalogue(counts))
    lines: list[Line] = []
    judging, started = 0.0, time.process_time()

    def validate(trained: torch.nn.Module) -> float:
        nonlocal judging
        seconds, begun = time.process_time() - started - judging, time.process_time()
        value = validation_ndcg(_scorer_of(model), split.validation, data.num_items)
        lines.append({"epoch": len(lines) + 1, "cpu_seconds": seconds, "share": 1.0, "ndcg@10": value})
        judging += time.process_time() - begun
        return value

    config = TrainingConfig(num_epochs=epochs, learning_rate=2e-3, warmup_steps=100, precision="bfloat16")
    train(model, BatchSource(split.training, BatchConfig(tokens=4096), 200), config, seed=0, validate=validate)
    return lines


def validation_ndcg(scorer: Scorer, held: Held, num_items: int) -> float:
    return float(figures(rank_targets(scorer, held, num_items).removed)["ndcg@10"].mean())


def _recite(table: np.ndarray) -> Scorer:
    """A scorer that reads people's rows one batch after the other, as `rank_targets` asks for them."""
    rows = iter(table)
    return lambda inputs: np.stack([next(rows) for _ in range(inputs.num_users)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--only", choices=(PALATE, *PEERS))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = open_sequences("ml-1m", arguments.data)
    results: dict[str, list[Line]] = {}
    for name in [PALATE, *PEERS] if arguments.only is None else [arguments.only]:
        try:
            if name == PALATE:
                results[name] = measure_palate(data, arguments.epochs)
            else:
                results[name] = measure_peer(PEERS[name], arguments.peers, data, arguments.epochs)
        except FileNotFoundError as error:
            print(f"{name}: not installed ({error})", file=sys.stderr)
            continue
        last = results[name][-1]
        whole = last["cpu_seconds"] / (last["epoch"] - 1 + last["share"])
        how = "" if last["share"] == 1 else f" (extrapolated from {last['share']:.2%} of one)"
        print(f"{name}: {whole:,.0f} CPU s an epoch{how}")
        for line in results[name]:
            if "ndcg@10" in line:
                print(f"    after {line['cpu_seconds']:,.0f} CPU s: validation nDCG@10 {line['ndcg@10']:.4f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
