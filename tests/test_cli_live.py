"""Live figures and off-policy estimates from the command line, and the figures of a system that runs."""

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from palate.cli import app
from palate.data.event import Event
from palate.errors import DataError, ModelError, StoreError
from palate.recommend import Recommender
from palate.service.contract import ListRequest
from palate.service.home import Home
from palate.service.live_report import live_report
from palate.service.off_policy import LogConfig, off_policy_report
from palate.service.opening import open_system, prepare
from palate.service.system import SystemConfig
from palate.service.trends import TrendConfig
from palate.store import Store, events, recommendations, schema
from palate.store.recommendations import ShownList

HOUR = 3600.0


def run(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, found.output
    return found.output


@pytest.fixture
def home(tmp_path: Path, model: Recommender) -> Home:
    made = Home(tmp_path / "home")
    made.make()
    store = Store.open(made.database)
    prepare(store, made, lambda: model, None)
    with store.write() as connection:  # taken in long ago
        connection.execute(update(schema.events).values(received_at=0.0))
    store.close()
    return made


def show(home: Home, model: Recommender, propensity: float) -> None:
    """Thirty strangers are shown five of the ten best items each, an age ago; a third of them chose the first."""
    store, rng, at = Store.open(home.database), np.random.default_rng(0), time.time() - 30 * HOUR
    best = [line.item_id for line in model.recommend([], 10)]
    for number in range(30):
        user, name = f"visitor-{number}", f"r{number}-{propensity}"
        items = [best[place] for place in rng.permutation(10)[:5]]
        with store.write() as connection:
            shown = ShownList(
                name, user, False, model.model_id, "served", "home", at, items, [1.0] * 5, [propensity] * 5
            )
            recommendations.add(connection, [shown])
            if number % 3 == 0:
                done = Event(user, items[0], "purchase", at + 60, event_id=f"e{name}", recommendation_id=name)
                events.append(connection, [done], at + 60)
    store.close()


def test_estimates_and_live_figures_are_printed(home: Home, model: Recommender) -> None:
    place = ("--home", str(home.folder))
    show(home, model, 1.0)
    said = run("off-policy", *place, code=2)
    assert "no exploration in 30 lists" in said
    assert len(said.strip().splitlines()) == 1
    show(home, model, 0.5)
    found = json.loads(run("off-policy", *place, "--json"))
    assert found["model_id"] == model.model_id
    assert found["left_out"] == {"certain": 30, "sessions": 0, "unmade": 0}
    assert found["as_shown"]["asymptotic"]["mean"] == pytest.approx(1 / 3)
    assert set(found["estimates"]) == {"ips", "snips", "dr"}
    assert found["overlap"]["num_people"] == 30
    assert found["overlap"]["largest_weight"] == 2.0
    text = run("off-policy", model.model_id, *place)
    assert "30 lists of 30 people" in text
    assert all(name in text for name in ("as shown", "ips", "snips", "dr", "overlap"))
    assert "no exploration" in run("off-policy", *place, "--event", "click", "--scenario", "cart", code=2)
    assert "not in the registry" in run("off-policy", "nothing", *place, code=2)

    live = json.loads(run("live", *place, "--hours", "48", "--json"))
    [rate] = live["rates"]
    assert (rate["lists"], rate["chosen"], rate["ctr"], rate["conversion"]) == (60, 20, 1 / 3, 1 / 3)
    assert live["served"] == model.model_id
    assert live["drift"]["adwin_lists"] == 60
    assert live["verdict"]["decision"] == "undecided"
    other = json.loads(run("live", *place, "--hours", "48", "--conversion", "order", "--json"))
    assert other["rates"][0]["conversion"] == 0.0
    assert json.loads(run("live", *place, "--json"))["rates"] == []  # none of the last day
    assert f"served   {model.model_id}" in run("live", *place, "--hours", "48")
    assert "no such store" in run("live", "--home", str(home.folder / "x"), code=2)


def test_one_call_of_the_library_gives_what_the_commands_print(home: Home, model: Recommender) -> None:
    show(home, model, 0.5)
    place = ("--home", str(home.folder))
    printed = json.loads(run("off-policy", *place, "--event", "purchase", "--json"))
    told = off_policy_report(home.folder, config=LogConfig(kinds=("purchase",)))
    assert (told.model_id, told.log.certain, told.log.sessions) == (model.model_id, 0, 0)
    assert told.found.target.overlap._asdict() == printed["overlap"]
    for name, value in told.found.target.values.items():
        assert value.bootstrap._asdict() == printed["estimates"][name]["bootstrap"]
    assert off_policy_report(str(home.folder), home.database, model_id=model.model_id).found == told.found
    with pytest.raises(DataError, match="no exploration"):
        off_policy_report(home.folder, days=1.0)
    with pytest.raises(ModelError, match="not in the registry"):
        off_policy_report(home.folder, model_id="nothing")

    found = live_report(home.folder, trends=TrendConfig(window=48.0))
    assert {key: rate._asdict() for key, rate in found.trends.rates.items()} == {
        ("served", model.model_id): {"lists": 30, "chosen": 10, "converted": 10}
    }
    assert live_report(home.folder, home.database, now=time.time() - 40 * HOUR).trends.rates == {}
    for call in (live_report, off_policy_report):
        with pytest.raises(StoreError, match="no such store"):
            call(home.folder / "x")


def test_a_home_that_serves_nothing_says_so(tmp_path: Path) -> None:
    Store.open(Home(tmp_path).database).close()
    for call in (live_report, off_policy_report):
        with pytest.raises(DataError, match=r"^[^\n]*no model is served yet[^\n]*$"):
            call(tmp_path)


def test_a_running_system_shows_what_comes_of_its_lists(home: Home, model: Recommender) -> None:
    async def main() -> None:
        trends = TrendConfig(seconds=0.05, horizon=0.5 / HOUR)
        config = SystemConfig(log_seconds=0.01, trends=trends)
        system = open_system(Store.open(home.database), home, config)
        system.start()
        try:
            assert "palate_ctr{" not in system.metrics().decode()
            lists = await system.recommend([ListRequest(user_id=f"u{number}") for number in range(4)])
            item, name = lists[0].items[0].item_id, lists[0].recommendation_id
            await system.add_events([Event("u0", item, "purchase", recommendation_id=name)])
            labels = f'{{model="{model.model_id}",variant="served"}}'
            for _ in range(200):
                await asyncio.sleep(0.05)
                said = system.metrics().decode()
                if f"palate_lists_judged{labels} 4.0" in said:
                    break
            assert f"palate_ctr{labels} 0.25" in said
            assert f"palate_conversion{labels} 0.25" in said
            assert "palate_drift_psi 0.0" in said
            assert "palate_drift_adwin 0.25" in said
            [rate] = [line for line in said.splitlines() if line.startswith("palate_event_rate ")]
            assert 0 < float(rate.split()[1]) <= 1
        finally:
            await system.close()

    asyncio.run(main())
