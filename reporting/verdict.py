"""What the curves of a run mean: one sentence, and traffic lights with one line of advice each.

Every rule reads metrics.jsonl alone. The bounds are rules of thumb; README's table of metrics has
the same ones. Next: reporting/curves.py.
"""

from dataclasses import dataclass

TAIL = 0.1  # of the steps: "now" is their mean
Row = dict[str, float]


@dataclass(frozen=True)
class Light:
    """level: "good", "watch", "bad" or "unknown". value: what was found. advice: what to do."""

    name: str
    level: str
    value: str
    advice: str


def column(rows: list[Row], name: str) -> list[float]:
    """The values of a metric where it was logged, the row of step 0 included."""
    return [row[name] for row in rows if name in row]


def tail_mean(rows: list[Row], name: str, at_start: bool = False) -> float | None:
    """Mean over the last (first) tenth of the steps, or None if the metric was never logged."""
    values = column(rows, name)
    if not values:
        return None
    count = max(1, round(TAIL * len(values)))
    chosen = values[:count] if at_start else values[-count:]
    return sum(chosen) / count


def percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"  # no line break between the two


def verdict(rows: list[Row], headline: str, max_steps: int) -> str:
    """How far the run came and what it brought, in one sentence."""
    steps = int(rows[-1]["step"]) if rows else 0
    name = f"eval/{headline}"
    judged = [row for row in rows if name in row]
    how_far = f"{steps} of {max_steps} steps"
    if not judged:
        return f"{how_far}: not evaluated yet."
    first, last = judged[0], judged[-1]
    rise = f"held-out {headline} {percent(first[name])} → {percent(last[name])}"
    if "eval/loose" in last:
        rise += f" (loose {percent(first['eval/loose'])} → {percent(last['eval/loose'])})"
    if f"eval/ood_{headline}" in last:
        before, after = (percent(row[f"eval/ood_{headline}"]) for row in (first, last))
        rise += f", out of distribution {before} → {after}"
    return f"{_outcome(first, last, name)} {how_far}: {rise}."


def _outcome(first: Row, last: Row, name: str) -> str:
    if last is first:
        return "Not trained yet."
    low, high = first.get(f"{name}_low", first[name]), first.get(f"{name}_high", first[name])
    if last[name] > high:
        return "Better than the start."
    return "Worse than the start." if last[name] < low else "No change beyond chance."


def lights(rows: list[Row], headline: str, skipped: list[str]) -> list[Light]:
    """All traffic lights of a run; those that do not apply (SFT has no groups) are left out."""
    found = [
        _share(
            rows,
            "frac_reward_zero_std",
            "Groups without spread",
            (0.5, 0.8),
            "their answers all earn the same and teach nothing. All right: harder questions, or "
            "stop. All wrong: more --num_generations or --shots, or --dense 1",
        ),
        _share(
            rows,
            "completions/clipped_ratio",
            "Cut at the length limit",
            (0.05, 0.3),
            "raise --max_completion_length, or charge for length with --overlong_weight",
        ),
        _share(
            rows,
            "completions/no_answer_ratio",
            "Answers that cannot be read",
            (0.1, 0.5),
            "the gallery shows some; raise --format_weight, or start from supervised fine-tuning",
        ),
        _drift(rows),
        _bounded(
            rows,
            "sampling/sampling_logp_difference/mean",
            "Sampler against trainer, nats",
            (0.05, 0.2),
            "the two disagree on the same weights; use --dtype float32",
        ),
        _hacking(rows, headline),
        _any(rows, "steps_skipped_nonfinite", "Updates that were not finite", "updates skipped"),
        *(
            _any(rows, f"reward/{kind}", f"Your reward: {kind}", "completions were left out")
            for kind in ("exception", "wrong_length", "not_finite")
        ),
        Light(
            "Skipped data",
            "watch" if skipped else "good",
            "; ".join(skipped) or "none",
            "repair these records, or check that nothing important is missing" if skipped else "",
        ),
    ]
    return [light for light in found if light is not None]


def _level(value: float, bounds: tuple[float, float]) -> str:
    watch, bad = bounds
    return "bad" if value > bad else "watch" if value > watch else "good"


def _share(rows, metric: str, name: str, bounds, advice: str) -> Light | None:
    value = tail_mean(rows, metric)
    if value is None:
        return None
    level = _level(value, bounds)
    return Light(name, level, percent(value), "" if level == "good" else advice)


def _bounded(rows, metric: str, name: str, bounds, advice: str) -> Light | None:
    value = tail_mean(rows, metric)
    if value is None:
        return None
    level = _level(value, bounds)
    return Light(name, level, f"{value:.2g}", "" if level == "good" else advice)


def _any(rows, metric: str, name: str, what: str) -> Light | None:
    """Red as soon as it happened at all."""
    values = column(rows, metric)
    if not values:
        return None
    total = sum(values)
    advice = f"{what}; look at the first message on the console" if total else ""
    return Light(name, "bad" if total else "good", f"{total:.0f}", advice)


def _drift(rows: list[Row]) -> Light | None:
    if not column(rows, "reward"):
        return None
    name, advice = "KL to the starting model, nats", "the policy is far away; raise --beta"
    light = _bounded(rows, "kl", name, (1.0, 5.0), advice)
    return light or Light(name, "unknown", "not measured", "needs --beta above 0")


def _hacking(rows: list[Row], headline: str) -> Light | None:
    """Is the policy paid for something that the held-out metric does not see?"""
    name, metric = "Reward against held-out metric", f"eval/{headline}"
    judged = [row for row in rows if metric in row]
    gain = tail_mean(rows, "reward")
    if gain is None or len(judged) < 2:
        return None
    gain -= tail_mean(rows, "reward", at_start=True)
    first, last = judged[0], judged[-1]
    low, high = first.get(f"{metric}_low", first[metric]), first.get(f"{metric}_high", 1.0)
    value = f"reward {gain:+.2f}, {headline} {100 * (last[metric] - first[metric]):+.1f} points"
    clear_gain = gain > 0.5 * (tail_mean(rows, "reward_std", at_start=True) or 0.0)
    if gain > 0 and last[metric] < low:
        advice = (
            "paid more and worse at the task: reward hacking; read the gallery, mend the reward"
        )
        return Light(name, "bad", value, advice)
    if clear_gain and last[metric] <= high:
        advice = "the reward rises, the held-out metric does not: hacking, or training data learnt "
        return Light(name, "watch", value, advice + "by heart; read the best groups of the gallery")
    return Light(name, "good", value, "")
