"""What people do with lists, from a home's store: the models' live figures, and estimates of lists never shown."""

import json
from typing import Annotated, Any

import typer

from palate.cli.common import JsonOption, command
from palate.cli.common import home as default_home
from palate.cli.serve import HomeOption, StoreOption
from palate.evaluation.off_policy import OffPolicyConfig, OffPolicyValue
from palate.service.live_report import LiveReport, live_report
from palate.service.off_policy import LogConfig, ModelReport, off_policy_report
from palate.service.trends import TrendConfig


@command("live")
def live(
    home: HomeOption = None,
    store: StoreOption = None,
    hours: Annotated[float, typer.Option(min=0.01, help="Rates are over the lists of so many hours …")] = 24.0,
    horizon: Annotated[
        float, typer.Option(min=0.01, help="… that are so many hours old: until then a choice counts.")
    ] = 1.0,
    conversion: Annotated[
        list[str] | None, typer.Option(help="Type of event that is a conversion; several times. Default: purchase.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how the models that serve do with people: choices and conversions, drift, the canary's sequential test."""
    conversions = tuple(conversion) if conversion else TrendConfig().conversions
    trends = TrendConfig(window=hours, horizon=horizon, conversions=conversions)
    found = live_report(home or default_home() / "service", store, trends=trends)
    if as_json:
        print(json.dumps(_live_values(found), allow_nan=False))
        return
    pointers = found.pointers
    served = "none" if pointers.served is None else pointers.served.model_id
    print(f"served {served}, canary {pointers.canary.model_id if pointers.canary else 'none'} ({pointers.share:.0%})")
    for (variant, model_id), rate in sorted(found.trends.rates.items()):
        print(f"{variant:<8} {model_id}  {rate.lists:>9,} lists  ctr {rate.ctr:.4f}  conversion {rate.conversion:.4f}")
    print(
        f"drift    stability index of choices {found.trends.stability:.3f}, {found.trends.changes} changes of the ctr"
    )
    print(f"verdict  {found.verdict.decision}: {found.verdict.reason}")
    if found.shares is not None and found.shares.mismatch:
        print(f"shares   the groups are not as large as they should be (p {found.shares.p_value:.1g}): believe nothing")


@command("off-policy")
def off_policy(
    model_id: Annotated[
        str | None, typer.Argument(help="Model of the registry whose best lists are judged. Default: the served one.")
    ] = None,
    home: HomeOption = None,
    store: StoreOption = None,
    days: Annotated[float, typer.Option(min=0.01, help="Lists of so many days are read.")] = 14.0,
    horizon: Annotated[float, typer.Option(min=0.01, help="Hours after a list in which a choice counts.")] = 24.0,
    event: Annotated[
        list[str] | None,
        typer.Option(help="Type of event that is a choice; several times. Default: all that do not say no."),
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="Of which lists. Default: of all.")] = None,
    lists: Annotated[int, typer.Option(min=1, help="The newest so many lists that explored are read.")] = 10_000,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = OffPolicyConfig().level,
    clip: Annotated[float, typer.Option(help="Greatest weight of a shown item.")] = OffPolicyConfig().clip,
    as_json: JsonOption = False,
) -> None:
    """Estimate from the log what a model's best lists would have earned: IPS, SNIPS, doubly robust, with intervals.

    In choices a list. Read are lists that explored, shown since the newest event that the model was trained on.
    """
    estimates = OffPolicyConfig(clip=clip, level=level)
    config = LogConfig(horizon, tuple(event or ()), scenario, lists, estimates=estimates)
    told = off_policy_report(home or default_home() / "service", store, model_id=model_id, days=days, config=config)
    if as_json:
        print(json.dumps(_log_values(told)))
        return
    log, found = told.log, told.found
    overlap = found.target.overlap
    print(
        f"{overlap.num_contexts:,} lists of {overlap.num_people:,} people that explored "
        f"(left out: {log.certain:,} that did not, {log.sessions:,} of sessions, {found.unmade:,} that cannot be made "
        "again)"
    )
    print(f"{'choices a list':<16}{'estimate':>9}   {level:.0%} interval over people")
    for label, value in {"as shown": found.logged, **found.target.values}.items():
        mean, low, high = value.asymptotic
        print(f"{label:<16}{mean:>9.4f}   [{low:.4f}, {high:.4f}]   bootstrap {_span(value)}")
    print(
        f"overlap: {overlap.num_matched:,} items are the model's too, worth {overlap.effective_size:,.0f} of its own; "
        f"coverage {overlap.coverage:.2f}, largest weight {overlap.largest_weight:.1f}, {overlap.clipped:.1%} clipped"
    )


def _span(value: OffPolicyValue) -> str:
    return f"[{value.bootstrap.low:.4f}, {value.bootstrap.high:.4f}]"


def _live_values(found: LiveReport) -> dict[str, Any]:
    pointers, trends, verdict = found.pointers, found.trends, found.verdict
    return {
        "served": None if pointers.served is None else pointers.served.model_id,
        "previous": pointers.previous,
        "canary": None if pointers.canary is None else pointers.canary.model_id,
        "share": pointers.share,
        "since": pointers.changed_at,
        "rates": [
            {"variant": variant, "model_id": model_id, **rate._asdict(), "ctr": rate.ctr, "conversion": rate.conversion}
            for (variant, model_id), rate in sorted(trends.rates.items())
        ],
        "drift": {
            "stability_index": trends.stability,
            "adwin_mean": trends.mean if trends.width else None,
            "adwin_lists": trends.width,
            "adwin_changes": trends.changes,
        },
        "verdict": {
            "decision": verdict.decision,
            "reason": verdict.reason,
            "figure": None if verdict.figure is None else verdict.figure._asdict(),
            "people": verdict.people,
        },
        "shares": None if found.shares is None else found.shares._asdict(),
    }


def _log_values(told: ModelReport) -> dict[str, Any]:
    def values(one: OffPolicyValue) -> dict[str, Any]:
        return {"asymptotic": one.asymptotic._asdict(), "bootstrap": one.bootstrap._asdict()}

    log, found = told.log, told.found
    return {
        "model_id": told.model_id,
        "left_out": {"certain": log.certain, "sessions": log.sessions, "unmade": found.unmade},
        "as_shown": values(found.logged),
        "estimates": {name: values(value) for name, value in found.target.values.items()},
        "overlap": found.target.overlap._asdict(),
    }
