"""The threads of a process: what computes keeps to one, whatever the environment says, and puts them back."""

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from palate.backbone.ensemble import _start_worker
from palate.threads import one_thread
from tiny_settings import EVALUATION, TRAINING

POOLS = """
import json, faiss, numpy, scipy.linalg, torch
from threadpoolctl import threadpool_info
from palate.threads import keep_to_one_thread

before = [pool["num_threads"] for pool in threadpool_info()]
keep_to_one_thread()
print(json.dumps([before, [pool["num_threads"] for pool in threadpool_info()], torch.get_num_threads()]))
"""
STAGES = """
import json, sys
from contextlib import contextmanager
import torch
from threadpoolctl import threadpool_info
from palate.cli import app
from palate.progress import Reporter

threads, stage = {}, Reporter.stage

def count():
    return max([torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())])

@contextmanager
def watched(self, name):
    with stage(self, name) as handle:
        yield handle
        threads[name] = count()

Reporter.stage = watched
before = count()
app(sys.argv[1:], standalone_mode=False)
print(json.dumps([before, threads]))
"""
SETTINGS = '[data]\ninteractions = "events.csv"\nitems = "items.csv"' + TRAINING + EVALUATION


def run(script: str, *arguments: str, folder: Path | None = None) -> str:
    """What a script prints as its last line, in a process in which every pool begins with three threads."""
    counts = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in counts}
    environment |= {"OMP_NUM_THREADS": "3"} | ({} if folder is None else {"PALATE_HOME": str(folder / "home")})
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_no_library_keeps_a_pool_at_work_beside_the_lists() -> None:
    before, after, of_torch = json.loads(run(POOLS))
    assert max(before) == 3
    assert set(after) == {1}
    assert of_torch == 1


def test_every_stage_of_a_training_and_its_evaluation_computes_with_one_thread(tmp_path: Path) -> None:
    rows = [
        f"u{person},t{person % 2}-{(person + event * 5) % 12},2024-{1 if person < 30 else 2:02}-{event + 1:02}"
        for person in range(40)
        for event in range(10)
    ]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    titles = [f"t{taste}-{number},{('cup', 'train')[taste]} {number}" for taste in range(2) for number in range(12)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title", *titles]))
    (tmp_path / "palate.toml").write_text(SETTINGS + f'[text]\ncache_dir = "{tmp_path}"\n')
    train = ("train", "--config", "palate.toml", "--out", "model", "--workers", "1", "--json")
    before, threads = json.loads(run(STAGES, *train, folder=tmp_path))
    assert before == 3
    computing = {"encode content", "pre-train", "meta-train", "fit baselines", "evaluate"}
    assert {name: threads[name] for name in computing} == dict.fromkeys(computing, 1)


def test_a_process_that_trains_a_member_computes_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker, initargs=(None, None)) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        assert {library["num_threads"] for library in pool.submit(threadpool_info).result()} == {1}


def test_the_pools_are_put_back_also_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2):
            with one_thread():
                assert held(1)
            assert held(2)
            with pytest.raises(ZeroDivisionError), one_thread():
                _ = 1 / 0
            assert held(2)
    finally:
        torch.set_num_threads(before)


def held(num_threads: int) -> bool:
    pools = {library["num_threads"] for library in threadpool_info()}
    return pools == {num_threads} and torch.get_num_threads() == num_threads
