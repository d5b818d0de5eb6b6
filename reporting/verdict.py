"""What the curves of a run mean: one sentence, and traffic lights with one line of advice each.

The rules read metrics.jsonl and the list of skipped data. Their bounds are rules of thumb.
Next: reporting/page/curves.py.
"""

import math
from dataclasses import dataclass

TAIL, MIN_TAIL = 0.1, 5  # share of a metric's values, and their number: "now" is their mean
Row = dict[str, float]
RIGHT = ("correct", "iou")  # parts of a task's reward that say how right an answer is, in [0, 1]

# Metric -> (green up to, red above). The README's table of metrics has the same numbers.
BOUNDS = {
    "frac_reward_zero_std": (0.5, 0.8),
    "completions/clipped_ratio": (0.05, 0.3),
    "completions/no_answer_ratio": (0.1, 0.5),
    "kl": (1.0, 5.0),
    "sampling/sampling_logp_difference/mean": (0.05, 0.2),
}
RARELY_RIGHT = 0.02  # of the sampled answers; red where none ever was
MOSTLY = 0.9  # of the groups without spread: then they are what these are


@dataclass(frozen=True)
class Light:
    """level: "good", "watch", "bad" or "unknown". value: what was found. advice: what to do."""

    name: str
    level: str
    value: str
    advice: str


def new_warnings(rows: list[Row], headline: str, known: set[str]) -> list[str]:
    """A line for each red light whose name is not in `known`, which becomes the names of all."""
    red = {light.name: light for light in lights(rows, headline, []) if light.level == "bad"}
    new = [light for name, light in red.items() if name not in known]
    known &= red.keys()
    known |= red.keys()
    return [f"warning: {light.name}: {light.value}; {light.advice}" for light in new]


def column(rows: list[Row], name: str) -> list[float]:
    """The values of a metric where it was logged, the row of step 0 included."""
    return [row[name] for row in rows if name in row]


def tail_mean(rows: list[Row], name: str, at_start: bool = False) -> float | None:
    """Mean over the last (first) tenth of the steps, five at least, of a metric that was logged."""
    values = column(rows, name)
    if not values:
        return None
    count = max(min(MIN_TAIL, len(values)), round(TAIL * len(values)))
    tail = values[:count] if at_start else values[-count:]
    return sum(tail) / count


def rise(first: Row, last: Row, headline: str) -> str:
    """base -> final, in words: the headline metric, the loose one, out of distribution."""

    def of(name: str) -> str:  # an early row may lack what a later one has
        if name not in first:
            return f"{last[name]:.1%}"
        return f"{first[name]:.1%} -> {last[name]:.1%}"

    line = f"held-out {headline} {of(f'eval/{headline}')}"
    if "eval/loose" in last:
        line += f" (loose {of('eval/loose')})"
    if f"eval/ood_{headline}" in last:
        line += f", out of distribution {of(f'eval/ood_{headline}')}"
    return line


def verdict(rows: list[Row], headline: str, max_steps: int) -> str:
    """How far the run came and what it brought, in one sentence."""
    steps, metric = int(rows[-1]["step"]) if rows else 0, f"eval/{headline}"
    judged = [row for row in rows if metric in row]
    how_far = f"{steps} of {max_steps} steps"
    if not judged:
        return f"{how_far}: not evaluated yet."
    first, last = judged[0], judged[-1]
    if last is first:
        return f"{how_far}, not evaluated since the start: held-out {headline} {first[metric]:.1%}."
    low, high = interval(first, metric)
    outcome = "Better than" if last[metric] > high else "Worse than"
    if low <= last[metric] <= high:
        outcome = "No change beyond chance from"
    return f"{outcome} the start. {how_far}: {rise(first, last, headline)}."


def brief_rise(rows: list[Row], headline: str) -> str:
    """The headline metric alone, base -> now; empty before the first evaluation."""
    values = column(rows, f"eval/{headline}")
    ends = values[:1] + values[1:][-1:]
    return " -> ".join(f"{value:.1%}" for value in ends)


def interval(row: Row, metric: str) -> tuple[float, float]:
    """The 95 % interval of a metric, or the value alone where none was logged."""
    return row.get(f"{metric}_low", row[metric]), row.get(f"{metric}_high", row[metric])


def lights(rows: list[Row], headline: str, skipped: list[str] | None) -> list[Light]:
    """All traffic lights of a run; those that do not apply (SFT has no groups) are left out."""
    found = [
        _right(rows),
        _flat(rows),
        _bounded(
            rows,
            "completions/clipped_ratio",
            "Cut at the length limit",
            "raise --max_completion_length, or charge for length with --overlong_weight",
        ),
        _bounded(
            rows,
            "completions/no_answer_ratio",
            "Answers that cannot be read",
            "the gallery shows some; raise --format_weight, or start from supervised fine-tuning",
        ),
        _drift(rows),
        _bounded(
            rows,
            "sampling/sampling_logp_difference/mean",
            "Sampler against trainer, nats per token",
            "the two disagree on the same weights; use --dtype float32",
            shown="{:.2g}",
        ),
        _hacking(rows, headline),
        _any(
            rows,
            "steps_skipped_nonfinite",
            "Updates that were not finite",
            "they were skipped; lower --learning_rate or --beta, or use --dtype float32",
        ),
        *(
            _any(
                rows,
                f"reward/{kind}",
                f"Your reward: {kind}",
                "these completions were left out; the console shows the first one",
            )
            for kind in ("exception", "wrong_length", "not_finite", "timeout", "died")
        ),
        _skipped(skipped),
    ]
    return [light for light in found if light is not None]


def _skipped(lines: list[str] | None) -> Light | None:
    if lines is None:  # a run of an earlier version did not say
        return None
    advice = "repair these records, or check that nothing important is missing" if lines else ""
    return Light(
        "Skipped data", "watch" if lines else "good", "; ".join(lines)[:2000] or "none", advice
    )


def _level(value: float, bounds: tuple[float, float]) -> str:
    watch, bad = bounds
    if not math.isfinite(value):
        return "bad"
    return "bad" if value > bad else "watch" if value > watch else "good"


def _bounded(
    rows: list[Row], metric: str, name: str, advice: str, shown: str = "{:.1%}"
) -> Light | None:
    value = tail_mean(rows, metric)
    if value is None:
        return None
    level = _level(value, BOUNDS[metric])
    return Light(name, level, shown.format(value), "" if level == "good" else advice)


def _right(rows: list[Row]) -> Light | None:
    """What sampling never says cannot be learnt."""
    metric = next((m for m in (f"rewards/{part}/mean" for part in RIGHT) if column(rows, m)), None)
    if metric is None:  # a reward of the user's: we do not know what is right
        return None
    name, value = "Right answers sampled", tail_mean(rows, metric)
    elsewhere = "another --model, more --shots, or train_sft.py first"
    if not any(column(rows, metric)):
        advice = f"what sampling never says cannot be learnt: {elsewhere}"
        return Light(name, "bad", "never", advice)
    if not value > RARELY_RIGHT:  # or no number
        return Light(name, "watch", f"{value:.1%}", f"so rarely that it is slow: {elsewhere}")
    return Light(name, "good", f"{value:.1%}", "")


def _flat(rows: list[Row]) -> Light | None:
    """Groups whose answers all earn the same teach nothing, be they all right or all wrong."""
    name, metric = "Groups without spread", "frac_reward_zero_std"
    flat = tail_mean(rows, metric)
    if flat is None:
        return None
    level, shown = _level(flat, BOUNDS[metric]), f"{flat:.0%}"
    when_wrong = "more --num_generations or --shots, or --dense 1"
    advice = f"they teach nothing. All right: harder questions, or stop. All wrong: {when_wrong}"
    right, wrong = (tail_mean(rows, f"frac_groups_all_{what}") for what in ("right", "wrong"))
    if right is not None and wrong is not None:  # a reward of the user's does not say
        shown += f" ({right:.0%} all right, {wrong:.0%} all wrong)"
        if right >= MOSTLY * flat > 0 and level != "good":
            return Light(name, "good", shown, "learnt; may stop, or go on with harder questions")
        if wrong >= MOSTLY * flat:
            advice = f"they teach nothing: {when_wrong}"
    return Light(name, level, shown, "" if level == "good" else advice)


def _any(rows, metric: str, name: str, advice: str) -> Light | None:
    """Red as soon as it happened at all."""
    values = column(rows, metric)
    if not values:
        return None
    total = sum(values)
    return Light(name, "bad" if total else "good", f"{total:.0f}", advice if total else "")


def _drift(rows: list[Row]) -> Light | None:
    if not column(rows, "reward"):
        return None
    name = "KL to the starting model, nats per token"
    light = _bounded(rows, "kl", name, "the policy is far away; raise --beta", shown="{:.2g}")
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
    low, high = interval(first, metric)
    points = last[metric] - first[metric]
    value = f"reward {gain:+.2f}, {headline} {100 * points:+.1f} points"
    noise = tail_mean(rows, "reward_std", at_start=True) or 0.0
    if gain > 0 and -points > 2 * (first[metric] - low) > 0:
        advice = "paid more and worse at the task: reward hacking; read the gallery and mend it"
        return Light(name, "bad", value, advice)
    if gain > 0 and last[metric] < low:
        return Light(name, "watch", value, "paid more and worse than the start; read the gallery")
    if gain > 0.5 * noise and last[metric] <= high:
        advice = "the reward rises, the held-out metric does not: hacking, or training data learnt "
        return Light(name, "watch", value, advice + "by heart; read the best groups of the gallery")
    return Light(name, "good", value, "")
