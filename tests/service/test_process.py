"""A real `palate serve` under kills and exchanges of models; `soak/service_kills.py` does more of the same."""

import os
import subprocess
import sys
from pathlib import Path

import palate

ROOT = Path(__file__).parents[2]


def test_kills_and_swaps_lose_and_mix_nothing(saved_model: Path) -> None:
    script, few = str(ROOT / "soak" / "service_kills.py"), ("--kills", "2", "--promotions", "8", "--swaps", "6")
    done = subprocess.run(
        [sys.executable, script, "--model", str(saved_model), *few],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(palate.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 kills" in done.stdout
    assert "none lost, none twice" in done.stdout
    assert "always a complete model" in done.stdout
    assert "none failed, none mixed" in done.stdout
    assert int(done.stdout.split("swaps under load, ")[1].split()[0]) > 20
