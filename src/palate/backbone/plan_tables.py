"""A plan as tables for the terminal, and as one JSON value."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from palate.backbone.plan import Plan


def plan_tables(plan: Plan) -> Sequence[Table | str]:
    """What `palate plan` prints, in order."""
    parameters, step, config = plan.parameters, plan.step, plan.config
    counts = Table("parameters", "number", box=None, pad_edge=False, title_justify="left")
    for name, number in _parameter_rows(plan):
        counts.add_row(name, f"{number:,}")
    counts.add_row("[bold]all[/]", f"[bold]{parameters.total:,}[/]")

    flops = Table("operations (forward and backward)", "FLOPs", box=None, pad_edge=False)
    flops.add_row("a token", f"{plan.flops_per_token:.3e}")
    flops.add_row(f"a step of one device ({step.num_tokens:,} tokens)", f"{_step_flops(plan):.3e}")
    flops.add_row("  of it item vectors, blocks, heads", f"{plan.sequence_flops:.3e}")
    flops.add_row("  of it scores of the items", f"{plan.output_flops:.3e}")
    flops.add_row(f"{plan.total_tokens:,} tokens", f"{plan.flops_per_token * plan.total_tokens:.3e}")

    memory = [_memory_table(plan, checkpointing) for checkpointing in (False, True)]
    chosen = plan.chosen
    how = f"{chosen.strategy}{', checkpointing' if chosen.checkpointing else ''}"
    time = (
        f"Time ({how}): {plan.step_seconds:.3g} s a step × {plan.num_steps:,} steps = {_span(plan.seconds)} on "
        f"{config.num_devices:,} × {plan.device.name} ({plan.device.flops / 1e12:,.3g} TFLOP/s in "
        f"{plan.device.precision}, {config.utilisation:.0%} of it used)."
    )
    note = "The peak is not the sum: gradients come while activations go. Traffic between devices is not in the time."
    return [counts, flops, *memory, note, time, *plan.advice]


def plan_json(plan: Plan) -> dict[str, Any]:
    """The same figures under names; bytes, seconds, FLOPs."""
    return {
        "parameters": {**plan.parameters._asdict(), "total": plan.parameters.total},
        "flops": {
            "token": plan.flops_per_token,
            "device_step": _step_flops(plan),
            "sequence": plan.sequence_flops,
            "output": plan.output_flops,
            "total": plan.flops_per_token * plan.total_tokens,
        },
        "memory": [line._asdict() for line in plan.memory],
        "time": {
            "strategy": plan.chosen.strategy,
            "checkpointing": plan.chosen.checkpointing,
            "step_seconds": plan.step_seconds,
            "num_steps": plan.num_steps,
            "seconds": plan.seconds,
            "total_tokens": plan.total_tokens,
            "utilisation": plan.config.utilisation,
        },
        "device": plan.device._asdict() | {"number": plan.config.num_devices},
        "fits": plan.chosen.fits,
        "advice": plan.advice,
    }


def _memory_table(plan: Plan, checkpointing: bool) -> Table:
    """Parts down, strategies across."""
    lines = [line for line in plan.memory if line.checkpointing == checkpointing]
    table = Table(f"GB on a device, {'checkpointing' if checkpointing else 'blocks kept'}", box=None, pad_edge=False)
    for line in lines:
        table.add_column(line.strategy, justify="right", max_width=13)
    for name, part in _PARTS.items():
        table.add_row(name, *(f"{getattr(line, part) / 1e9:,.2f}" for line in lines))
    table.add_row("fits", *("[green]✓[/]" if line.fits else "[red]✗[/]" for line in lines))
    return table


_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "averaged weights": "ema",
    "catalogue": "buffers",
    "activations": "activations",
    "output": "output",
    "exchange": "exchange",
    "[bold]peak[/]": "peak",
}


def _parameter_rows(plan: Plan) -> list[tuple[str, int]]:
    parameters = plan.parameters
    rows = [
        (f"id table of {plan.config.num_items:,} items", parameters.item_table),
        ("item biases", parameters.item_bias),
        ("content projection", parameters.projection),
        ("sequence side", parameters.sequence),
        ("heads", parameters.heads),
    ]
    return [row for row in rows if row[1]]


def _step_flops(plan: Plan) -> float:
    return plan.sequence_flops + plan.output_flops


def _span(seconds: float) -> str:
    """A span of time in the unit that suits it."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"
