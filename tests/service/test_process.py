"""A real `palate serve` under kills and exchanges of models; `soak/service_kills.py` does more of the same."""

import os
import subprocess
import sys
import time
from pathlib import Path

import palate
from palate.client import Client, Event

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


def test_several_processes_serve_one_person(saved_model: Path, postgres_url: str, tmp_path: Path) -> None:
    """Each request on a new connection, so that any process may get it; each list has seen what came before."""
    environment = {"PALATE_STORE": postgres_url, "OMP_NUM_THREADS": "1"}
    sources = {"PYTHONPATH": str(Path(palate.__file__).parents[1])}
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "palate",
            "serve",
            "--model",
            str(saved_model),
            "--home",
            str(tmp_path / "home"),
            "--port",
            "0",
            "--workers",
            "2",
        ],
        env=os.environ | environment | sources,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said: list[str] = []
        while sum(line.startswith("serving on") for line in said) < 3:  # the parent and both children
            said.append(process.stdout.readline())
            assert said[-1], said
        url = next(line.split()[2] for line in said if line.startswith("serving on"))
        key = next(line.split()[-1] for line in said if line.startswith("admin key"))
        seen: list[str] = []
        for _ in range(12):
            with Client(url, key) as client:
                found = client.recommend("someone", k=3)
            assert not set(seen) & {line.item_id for line in found.items}
            seen.append(found.items[0].item_id)
            with Client(url, key) as client:
                assert client.add_events([Event("someone", seen[-1])]).accepted == 1
        process.terminate()
        start = time.monotonic()
        assert process.wait(60) == 0
        assert time.monotonic() - start < 45
