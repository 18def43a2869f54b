"""`palate plan`: figures as tables and as JSON, and one line for bad input."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner, Result

from palate.backbone.devices import find_device
from palate.backbone.item_tables import ItemTableConfig
from palate.backbone.plan import PlanConfig, make_plan
from palate.backbone.plan_tables import plan_json
from palate.backbone.sizes import find_size
from palate.cli import app

TINY = ("plan", "--size", "tiny", "--items", "1e3", "--batch", "402")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_json_has_every_figure() -> None:
    result = run(*TINY, "--devices", "2", "--loss", "sampled", "--flops", "1e15", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["parameters"]["item_table"] == 1000 * 128
    assert {line["strategy"] for line in plan["memory"]} >= {"ddp", "fsdp", "ddp, sharded table", "fsdp, sharded table"}
    assert plan["device"]["flops"] == 1e15
    assert plan["time"]["seconds"] == pytest.approx(plan["time"]["step_seconds"] * plan["time"]["num_steps"])
    assert plan["fits"]


def test_tables_name_the_parts() -> None:
    result = run(*TINY)
    assert result.exit_code == 0, result.output
    for words in ("id table of 1,000 items", "sequence side", "a token", "checkpointing", "Time"):
        assert words in result.output


def test_scientific_and_plain_numbers_are_the_same() -> None:
    plain = run("plan", "--size", "tiny", "--items", "1000", "--batch", "402", "--json")
    assert run(*TINY, "--json").stdout == plain.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--size", "huge", "--items", "9"), ("huge", "tiny")),
        (("--size", "tiny", "--items", "many"), ("--items", "many")),
        (("--size", "tiny", "--items", "1.5"), ("--items", "1.5")),
        (("--size", "tiny", "--items", "nan"), ("--items", "nan")),
        (("--size", "tiny", "--items", "0"), ("num_items", "0")),
        (("--size", "tiny", "--items", "9", "--devices", "0"), ("num_devices", "0")),
        (("--size", "tiny", "--items", "9", "--device", "abacus"), ("abacus", "h100")),
        (("--size", "tiny", "--items", "9", "--mfu", "0"), ("utilisation", "0")),
        (("--size", "tiny", "--items", "9", "--flops", "0"), ("--flops", "0")),
        (("--size", "tiny", "--items", "9", "--loss", "hinge"), ("hinge", "sampled")),
        (("--size", "tiny", "--items", "9", "--negatives", "4"), ("num_negatives", "full")),
        (("--size", "tiny", "--items", "9", "--table", "round"), ("round", "quotient")),
        (("--size", "tiny", "--items", "9", "--compression", "4"), ("compression", "full")),
        (("--size", "tiny", "--items", "9", "--block", "brick"), ("brick", "hstu")),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments: tuple[str, ...], says: tuple[str, ...]) -> None:
    result = run("plan", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in says:
        assert word in result.stderr


def test_a_sharded_table_is_planned_as_the_full_one_it_spreads() -> None:
    pages = []
    for table in ("full", "sharded"):
        model = replace(find_size("tiny"), max_events=20, item_table=ItemTableConfig(table))
        made = make_plan(model, PlanConfig(500, 1, 200, 1000), find_device("h100"))
        pages.append(plan_json(made))
    assert pages[0]["parameters"] == pages[1]["parameters"]
