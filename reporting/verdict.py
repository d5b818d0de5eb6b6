"""What the curves of a run mean: one sentence, and traffic lights with one line of advice each.

The rules read metrics.jsonl and the list of skipped data. Their bounds are rules of thumb.
Next: reporting/page/curves.py.
"""

from typing import NamedTuple

TAIL, MIN_TAIL = 0.1, 5  # share of a metric's values, and their number: "now" is their mean
Row = dict[str, float]
Rule = tuple[str | None, str, str]  # level, value and advice of a light
LEVELS = ("bad", "watch", "good", "unknown")
NO_LIGHT = (None, "", "")  # it does not apply
RIGHT = ("correct", "iou")  # parts of a task's reward that say how right an answer is, in [0, 1]
SAMPLING = "sampling/sampling_logp_difference/mean"

# Metric -> (green up to, red above). docs/metrics.md has the same numbers.
BOUNDS = {
    "frac_reward_zero_std": (0.5, 0.8),
    "completions/clipped_ratio": (0.05, 0.3),
    "completions/no_answer_ratio": (0.1, 0.5),  # likewise eval/no_answer_ratio
    "completions/no_reward_ratio": (0.1, 0.5),
    "kl": (1.0, 5.0),
    SAMPLING: (0.05, 0.2),
}
RARELY_RIGHT = 0.02  # of the sampled answers; red where none ever was
MOSTLY = 0.9  # of the zero-std groups
UNIFORM = (0.3, 0.5)  # `uniformity` of the evaluation's answers
SPLITS = {"held-out": "eval/", "out of distribution": "eval/ood_"}


def column(rows: list[Row], name: str) -> list[float]:
    """The values of a metric where it was logged, the row of step 0 included."""
    return [row[name] for row in rows if name in row]


def tail_length(count: int) -> int:
    """How many of a metric's values "now" is the mean of."""
    return max(MIN_TAIL, round(TAIL * count))


def tail_mean(rows: list[Row], name: str, at_start: bool = False) -> float | None:
    """Mean over the last (first) tenth of the steps, five at least, of a metric that was logged."""
    values = column(rows, name)
    if not values:
        return None
    count = tail_length(len(values))
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


def uniformity(row: Row, prefix: str) -> float | None:
    """How much more often than any target the most frequent answer is given: 1 if always.

    With the shares a of that answer and t of the most frequent target, (a - t) / (1 - t): 0 for
    answers as varied as the targets. None where it was not measured, where no answer can be read,
    and where there is one target only.
    """
    answer, target = (row.get(f"{prefix}top_{what}_share") for what in ("answer", "target"))
    if not answer or target is None or target >= 1:
        return None
    return (answer - target) / (1 - target)


def has_no_skill(row: Row, headline: str, prefix: str = "eval/") -> bool:
    """Whether one constant answer could be as often right, going by the 95 % interval."""
    target, metric = row.get(f"{prefix}top_target_share", 0.0), f"{prefix}{headline}"
    return headline == "strict" and 0 < target < 1 and interval(row, metric)[0] <= target


def doubts(row: Row, headline: str, prefix: str = "eval/") -> list[str]:
    """What a good number of this evaluation hides: one answer to all, no skill, no answers."""
    found, unread = [], row.get(f"{prefix}no_answer_ratio", 0.0)
    answer, target = (row.get(f"{prefix}top_{what}_share", 0.0) for what in ("answer", "target"))
    if (uniformity(row, prefix) or 0.0) > UNIFORM[1]:
        found.append(
            f"Collapsed to one answer, given to {answer:.1%} of the questions, while no answer "
            f"is right for more than {target:.1%}"
        )
    if has_no_skill(row, headline, prefix):
        value = f"{row[f'{prefix}{headline}']:.1%}"
        found.append(
            f"{value} right, not clearly more than always answering with the most frequent target "
            f"({target:.1%})"
        )
    if unread > BOUNDS["completions/no_answer_ratio"][1]:
        found.append(f"{unread:.1%} of the answers cannot be read as answers of this task")
    return found


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
    outcome = f"{outcome} the start"
    if found := doubts(last, headline):  # then it is not "better", whatever the numbers are
        found += [outcome] if last[metric] < low else []
        outcome = ". ".join(found)
    return f"{outcome}. {progress}: {rise(first, last, headline)}."


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
    differs = "the two disagree on the same weights; use --dtype float32"
    not_finite = "they were skipped; lower --learning_rate or --beta, or use --dtype float32"
    no_reward = "left out of all means; they teach nothing"
    rules = {
        "Right answers sampled": _right(rows),
        "Unreadable answers": _unread(rows),
        "Most frequent answer": _uniform(rows),
        "Right answers against a constant answer": _skill(rows, headline),
        "Zero-std groups": _zero_std(rows),
        "Truncated completions": _bounded(rows, "completions/clipped_ratio", too_long),
        "Completions without a reward": _bounded(rows, "completions/no_reward_ratio", no_reward),
        "KL to the starting model, nats per token": _kl(rows),
        "Sampler against trainer, nats per token": _bounded(rows, SAMPLING, differs),
        "Reward against held-out metric": _hacking(rows, headline),
        "Non-finite updates": _any(rows, "steps_skipped_nonfinite", not_finite),
    }
    rules |= _faults(rows)
    if skipped is not None:
        value, advice = "; ".join(skipped)[:2000] or "none", "repair them, or check what is missing"
        rules["Skipped data"] = ("watch" if skipped else "good", value, advice)
    found = [
        Light(name, level, value, "" if level == "good" else advice)
        for name, (level, value, advice) in rules.items()
        if level is not None
    ]
    return sorted(found, key=lambda light: LEVELS.index(light.level))


def _bounded(rows: list[Row], metric: str, advice: str) -> Rule:
    """Compare the mean of the last steps with its BOUNDS."""
    value, (watch, bad) = tail_mean(rows, metric), BOUNDS[metric]
    if value is None:
        return NO_LIGHT
    level = "watch" if value > watch else "good"
    level = level if value <= bad else "bad"  # NaN: bad
    return level, f"{value:{'.2g' if metric in ('kl', SAMPLING) else '.1%'}}", advice


def _unread(rows: list[Row]) -> Rule:
    """Answers outside the task's grammar: sampled (the last steps), and greedy (the last ones)."""
    advice = "not of the form that the task reads: see the rollouts; train_sft.py teaches it"
    rules = [_bounded(rows, "completions/no_answer_ratio", advice)]
    evaluated = column(rows, "eval/no_answer_ratio")[-1:]
    last = [{"completions/no_answer_ratio": value} for value in evaluated]
    rules.append(_bounded(last, "completions/no_answer_ratio", advice))
    names = ("sampled", "held-out")
    return _worst([(name, rule) for name, rule in zip(names, rules, strict=True)])


def _uniform(rows: list[Row]) -> Rule:
    """Does the model say one thing whatever it is asked?"""
    advice = "it says the same whatever it is asked: lower --learning_rate, or raise --beta"
    rules = []
    for split, prefix in SPLITS.items():
        measured = [row for row in rows if uniformity(row, prefix) is not None]
        if len(measured) > 1:  # the first is the model as it came
            row, (watch, bad) = measured[-1], UNIFORM
            share = uniformity(row, prefix)
            level = "bad" if share > bad else "watch" if share > watch else "good"
            answer, target = (row[f"{prefix}top_{what}_share"] for what in ("answer", "target"))
            rules.append((split, (level, f"{answer:.1%} (targets: {target:.1%} at most)", advice)))
    return _worst(rules)


def _skill(rows: list[Row], headline: str) -> Rule:
    measured = [row for row in rows if f"eval/{headline}" in row and "eval/top_target_share" in row]
    if len(measured) < 2 or headline != "strict":
        return NO_LIGHT
    value, target = measured[-1]["eval/strict"], measured[-1]["eval/top_target_share"]
    level = "good"
    if has_no_skill(measured[-1], headline):
        level = "bad" if value <= target else "watch"
    advice = "always answering with the most frequent target would do as well"
    return level, f"{value:.1%} against {target:.1%}", advice


def _worst(rules: list[tuple[str, Rule]]) -> Rule:
    """One light of several: the worst level, and the values with their names."""
    rules = [(name, rule) for name, rule in rules if rule[0] is not None]
    if not rules:
        return NO_LIGHT
    level, _, advice = min((rule for _, rule in rules), key=lambda rule: LEVELS.index(rule[0]))
    return level, ", ".join(f"{name} {rule[1]}" for name, rule in rules), advice


def _any(rows: list[Row], metric: str, advice: str) -> Rule:
    """Red as soon as it happened at all."""
    if not (values := column(rows, metric)):
        return NO_LIGHT
    return "bad" if any(values) else "good", f"{sum(values):.0f}", advice


def _faults(rows: list[Row]) -> dict[str, Rule]:
    """A light for each kind of fault of a --reward that happened, or one for none."""
    advice = "these completions have no reward and are in no mean; see reward_faults.jsonl"
    names = ("exception", "wrong_length", "not_finite", "timeout", "died")
    rules = {f"Your reward: {name}": _any(rows, f"reward/{name}", advice) for name in names}
    red = {name: (lv, f"{v} completions", a) for name, (lv, v, a) in rules.items() if lv == "bad"}
    return red or {"Faults of your reward": _any(rows, "reward/exception", advice)}


def _right(rows: list[Row]) -> Rule:
    """What is never sampled cannot be learnt."""
    metric = next((m for m in (f"rewards/{part}/mean" for part in RIGHT) if column(rows, m)), None)
    if metric is None:  # a --reward: what is right is unknown
        rewards, is_sampled = column(rows, "reward"), column(rows, "completions/mean_length")
        if is_sampled and not rewards:
            return "bad", "no completion has a reward", "check --reward"
        is_zero = bool(rewards) and not any(rewards)
        return ("bad", "the reward is always 0", "check --reward") if is_zero else NO_LIGHT
    remedy = "another --model, more training data, or train_sft.py first"
    value = tail_mean(rows, metric)
    if not any(column(rows, metric)):
        return "bad", "never", f"what is never sampled cannot be learnt: {remedy}"
    level = "good" if value > RARELY_RIGHT else "watch"  # NaN: watch
    shown = f"mean IoU {value:.1%}" if "iou" in metric else f"{value:.1%}"
    return level, shown, f"so rarely that it is slow: {remedy}"


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
        return "bad", value, "more reward, worse at the task: reward hacking; see the rollouts"
    if gain > 0 and last[metric] < low:
        return "watch", value, "more reward, worse than the start; see the rollouts"
    if gain > 0.5 * noise and last[metric] <= high:
        return "watch", value, "more reward, not better: hacking or overfitting; see the rollouts"
    return "good", value, ""
