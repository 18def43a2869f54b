"""The threads of a process: what lists are made with keeps to one, whatever the environment says."""

import json
import os
import subprocess
import sys

POOLS = """
import json, faiss, numpy, scipy.linalg, torch
from threadpoolctl import threadpool_info
from palate.service.machine import keep_to_one_thread

before = [pool["num_threads"] for pool in threadpool_info()]
keep_to_one_thread()
print(json.dumps([before, [pool["num_threads"] for pool in threadpool_info()], torch.get_num_threads()]))
"""


def test_no_library_keeps_a_pool_at_work_beside_the_lists() -> None:
    counts = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in counts}
    environment["OMP_NUM_THREADS"] = "3"
    done = subprocess.run([sys.executable, "-c", POOLS], env=environment, capture_output=True, text=True, check=True)
    before, after, of_torch = json.loads(done.stdout)
    assert max(before) == 3
    assert set(after) == {1}
    assert of_torch == 1
