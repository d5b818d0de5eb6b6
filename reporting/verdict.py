"""What the curves of a run mean: one sentence, and traffic lights with one line of advice each.

The rules read metrics.jsonl and the list of skipped data. Their bounds are rules of thumb.
Next: reporting/page/curves.py.
"""

from typing import NamedTuple

TAIL, MIN_TAIL = 0.1, 5  # share of a metric's values, and their number: "now" is their mean
Row = dict[str, float]
Rule = tuple[str | None, str, str]  # level, value and advice of a light
NO_LIGHT = (None, "", "")  # it does not apply
RIGHT = ("correct", "iou")  # parts of a task's reward that say how right an answer is, in [0, 1]
SAMPLING = "sampling/sampling_logp_difference/mean"

# Metric -> (green up to, red above). docs/metrics.md has the same numbers.
BOUNDS = {
    "frac_reward_zero_std": (0.5, 0.8),
    "completions/clipped_ratio": (0.05, 0.3),
    "completions/no_answer_ratio": (0.1, 0.5),
    "kl": (1.0, 5.0),
    SAMPLING: (0.05, 0.2),
}
RARELY_RIGHT = 0.02  # of the sampled answers; red where none ever was
MOSTLY = 0.9  # of the zero-std groups


def column(rows: list[Row], name: str) -> list[float]:
    """The values of a metric where it was logged, the row of step 0 included."""
    return [row[name] for row in rows if name in row]


def tail_mean(rows: list[Row], name: str, at_start: bool = False) -> float | None:
    """Mean over the last (first) tenth of the steps, five at least, of a metric that was logged."""
    values = column(rows, name)
    if not values:
        return None
    count = max(MIN_TAIL, round(TAIL * len(values)))
    tail = values[:count] if at_start else values[-count:]
    return sum(tail) / len(tail)


def interval(row: Row, metric: str) -> tuple[float, float]:
    """The 95 % interval of a metric, or the value alone where none was logged."""
    return row.get(f"{metric}_low", row[metric]), row.get(f"{metric}_high", row[metric])


def rise(first: Row, last: Row, headline: str) -> str:
    """base -> final, in words: the headline metric, the loose one, out of distribution."""

    def of(name: str) -> str:  # an early row may lack what a later one has
        return " -> ".join(f"{row[name]:.1%}" for row in (first, last) if name in row)

    line = f"held-out {headline} {of(f'eval/{headline}')}"
    if "eval/loose" in last:
        line += f" (loose {of('eval/loose')})"
    if f"eval/ood_{headline}" in last:
        line += f", out of distribution {of(f'eval/ood_{headline}')}"
    return line


def verdict(rows: list[Row], headline: str, max_steps: int) -> str:
    """How far the run came and what it brought, in one sentence."""
    metric = f"eval/{headline}"
    evaluations = [row for row in rows if metric in row]
    progress = f"{int(rows[-1]['step']) if rows else 0} of {max_steps} steps"
    if not evaluations:
        return f"{progress}: not evaluated yet."
    first, last = evaluations[0], evaluations[-1]
    if last is first:
        value = f"held-out {headline} {first[metric]:.1%}"
        return f"{progress}, not evaluated since the start: {value}."
    low, high = interval(first, metric)
    outcome = "Better than" if last[metric] > high else "Worse than"
    if low <= last[metric] <= high:
        outcome = "No change beyond chance from"
    return f"{outcome} the start. {progress}: {rise(first, last, headline)}."


class Light(NamedTuple):
    """level: "good", "watch", "bad" or "unknown". value: what was measured. advice: what to do."""

    name: str
    level: str
    value: str
    advice: str


def new_warnings(rows: list[Row], headline: str, warned: set[str]) -> list[str]:
    """A line for each red light whose name is not in `warned`, which becomes the names of all."""
    red = [light for light in lights(rows, headline, []) if light.level == "bad"]
    new = [light for light in red if light.name not in warned]
    warned.clear()
    warned.update(light.name for light in red)
    return [f"warning: {light.name}: {light.value}; {light.advice}" for light in new]


def lights(rows: list[Row], headline: str, skipped: list[str] | None) -> list[Light]:
    """All traffic lights of a run; those that do not apply (SFT has no groups) are left out.

    Args:
        skipped: lines about skipped data; None where run.json does not say.
    """
    too_long = "raise --max_completion_length, or charge for length with --overlong_weight"
    no_answer = "see the gallery; raise --format_weight, or start from supervised fine-tuning"
    differs = "the two disagree on the same weights; use --dtype float32"
    not_finite = "they were skipped; lower --learning_rate or --beta, or use --dtype float32"
    fault = "these completions were left out; the console shows the first one"
    rules = {
        "Right answers sampled": _right(rows),
        "Zero-std groups": _zero_std(rows),
        "Truncated completions": _bounded(rows, "completions/clipped_ratio", too_long),
        "Unparsable answers": _bounded(rows, "completions/no_answer_ratio", no_answer),
        "KL to the starting model, nats per token": _kl(rows),
        "Sampler against trainer, nats per token": _bounded(rows, SAMPLING, differs),
        "Reward against held-out metric": _hacking(rows, headline),
        "Non-finite updates": _any(rows, "steps_skipped_nonfinite", not_finite),
    }
    for kind in ("exception", "wrong_length", "not_finite", "timeout", "died"):
        rules[f"Your reward: {kind}"] = _any(rows, f"reward/{kind}", fault)
    if skipped is not None:
        value, advice = "; ".join(skipped)[:2000] or "none", "repair them, or check what is missing"
        rules["Skipped data"] = ("watch" if skipped else "good", value, advice)
    return [
        Light(name, level, value, "" if level == "good" else advice)
        for name, (level, value, advice) in rules.items()
        if level is not None
    ]


def _bounded(rows: list[Row], metric: str, advice: str) -> Rule:
    """Compare the mean of the last steps with its BOUNDS."""
    value, (watch, bad) = tail_mean(rows, metric), BOUNDS[metric]
    if value is None:
        return NO_LIGHT
    level = "watch" if value > watch else "good"
    level = level if value <= bad else "bad"  # NaN: bad
    return level, f"{value:{'.2g' if metric in ('kl', SAMPLING) else '.1%'}}", advice


def _any(rows: list[Row], metric: str, advice: str) -> Rule:
    """Red as soon as it happened at all."""
    if not (values := column(rows, metric)):
        return NO_LIGHT
    return "bad" if any(values) else "good", f"{sum(values):.0f}", advice


def _right(rows: list[Row]) -> Rule:
    """What is never sampled cannot be learnt."""
    metric = next((m for m in (f"rewards/{part}/mean" for part in RIGHT) if column(rows, m)), None)
    if metric is None:  # a --reward: what is right is unknown
        rewards = column(rows, "reward")
        is_zero = bool(rewards) and not any(rewards)
        return ("bad", "the reward is always 0", "check --reward") if is_zero else NO_LIGHT
    value, remedy = (
        tail_mean(rows, metric),
        "another --model, more training data, or train_sft.py first",
    )
    if not any(column(rows, metric)):
        return "bad", "never", f"what is never sampled cannot be learnt: {remedy}"
    level = "good" if value > RARELY_RIGHT else "watch"  # NaN: watch
    return level, f"{value:.1%}", f"so rarely that it is slow: {remedy}"


def _zero_std(rows: list[Row]) -> Rule:
    """Groups whose rewards are all equal teach nothing, be they all right or all wrong."""
    names = ("frac_reward_zero_std", "frac_groups_all_right", "frac_groups_all_wrong")
    share, right, wrong = (tail_mean(rows, name) for name in names)
    when_wrong = "more --num_generations or training data, or --dense 1 (if the task has it)"
    advice = f"they teach nothing. All right: harder questions, or stop. All wrong: {when_wrong}"
    level, value, _ = _bounded(rows, names[0], advice)
    if level is None or right is None or wrong is None:  # a --reward does not say what is right
        return level, value, advice
    value += f" ({right:.1%} all right, {wrong:.1%} all wrong)"
    if right >= MOSTLY * share > 0 and level != "good":
        return "good", f"{value}: learnt; stop, or continue with harder questions", ""
    return level, value, f"they teach nothing: {when_wrong}" if wrong >= MOSTLY * share else advice


def _kl(rows: list[Row]) -> Rule:
    if column(rows, "reward") and not column(rows, "kl"):
        return "unknown", "not measured", "needs --beta above 0"
    return _bounded(rows, "kl", "the policy is far away; raise --beta")


def _hacking(rows: list[Row], headline: str) -> Rule:
    """Does the reward rise for something that the held-out metric does not see?"""
    metric, reward = f"eval/{headline}", tail_mean(rows, "reward")
    evaluations = [row for row in rows if metric in row]
    if reward is None or len(evaluations) < 2:
        return NO_LIGHT
    first, last = evaluations[0], evaluations[-1]
    low, high = interval(first, metric)
    gain = reward - tail_mean(rows, "reward", at_start=True)
    points = last[metric] - first[metric]
    noise = tail_mean(rows, "reward_std", at_start=True) or 0.0
    value = f"reward {gain:+.2f}, {headline} {100 * points:+.1f} points"
    if gain > 0 and -points > 2 * (first[metric] - low) > 0:
        return "bad", value, "more reward, worse at the task: reward hacking; read the gallery"
    if gain > 0 and last[metric] < low:
        return "watch", value, "more reward, worse than the start; read the gallery"
    if gain > 0.5 * noise and last[metric] <= high:
        return "watch", value, "more reward, not better: hacking or overfitting; read the gallery"
    return "good", value, ""
