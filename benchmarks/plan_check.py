"""How right a plan is: its operations, memory and time beside real steps on this machine's CPU, one thread.

    python benchmarks/plan_check.py

Memory is what PyTorch's allocator gave out at its peak; time is CPU seconds of a whole step (forward, backward,
clipping, AdamW), planned from the matrix product's measured ceiling at the utilisation that the first line measured.
"""

import time
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from palate.backbone.devices import measure_cpu
from palate.backbone.next_item import LossConfig
from palate.backbone.plan import PASSES
from palate.backbone.plan_memory import count_parameters
from palate.backbone.rehearsal import StepShape, build, full_batch, rehearse
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.sizes import SIZES

CASES = [
    ("tiny", 10_000, 5, 50, "full"),
    ("tiny", 10_000, 20, 50, "full"),
    ("tiny", 10_000, 20, 50, "sampled"),
    ("tiny", 10_000, 10, 200, "full"),
    ("small", 10_000, 5, 50, "full"),
    ("small", 10_000, 10, 100, "sampled"),
]


def allocated_peak(model: SequenceModelConfig, step: StepShape) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        rehearse(model, step, real=True)
    live = peak = 0
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure_step(config: SequenceModelConfig, step: StepShape) -> tuple[int, float]:
    """Operations of a step, and its CPU seconds: the least of three."""
    model, batch = build(config, step), full_batch(config, step)
    optimiser = torch.optim.AdamW(model.parameters())

    def run() -> None:
        optimiser.zero_grad()
        (model(batch).total / step.num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    with FlopCounterMode(display=False) as counter:
        run()
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return counter.get_total_flops(), min(seconds)


def main() -> None:
    torch.set_num_threads(1)
    cpu = measure_cpu()
    print(f"ceiling {cpu.flops / 1e9:.0f} GFLOP/s, {cpu.bandwidth / 1e9:.1f} GB/s")
    print("| size | items | sequences | loss | parameters | FLOPs ÷ real | bytes ÷ real | planned s | CPU s | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    utilisation = 0.0
    for name, items, rows, events, loss in CASES:
        config = replace(SIZES[name], loss=LossConfig(loss))
        step = StepShape(items, rows, events)
        planned, parameters = rehearse(config, step), count_parameters(config, items).total
        assert parameters == sum(weight.numel() for weight in build(config, step).parameters())
        flops, seconds = measure_step(config, step)
        work, passes = planned.sequence_flops + planned.output_flops, PASSES * 4 * parameters / cpu.bandwidth
        utilisation = utilisation or work / (cpu.flops * (seconds - passes))
        expected = work / (cpu.flops * utilisation) + passes
        print(
            f"| {name} | {items:,} | {rows} × {events} | {loss} | {parameters:,} | {work / flops:.4f} "
            f"| {planned.peak / allocated_peak(config, step):.4f} | {expected:.3f} | {seconds:.3f} "
            f"| {expected / seconds:.2f} |",
            flush=True,
        )
    print(f"utilisation of the first line: {utilisation:.2f}")


if __name__ == "__main__":
    main()
