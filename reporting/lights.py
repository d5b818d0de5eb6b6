"""The traffic lights of a run: what its metrics mean, each with one line of advice.

The rules read metrics.jsonl and the list of skipped data. Their bounds are rules of thumb.
Next: reporting/page/curves.py.
"""

import math
from typing import NamedTuple

from reporting.verdict import (
    METRIC_NAMES,
    MOSTLY_UNREAD,
    RIGHT,
    UNIFORM,
    Row,
    change,
    column,
    has_no_skill,
    lost_rewards,
    of_file,
    rises_alone,
    short,
    tail_length,
    tail_mean,
    trend,
    uniformity,
)

Rule = tuple[str | None, str, str]  # level, value and advice of a light
LEVELS = ("bad", "watch", "good", "unknown")
NO_LIGHT = (None, "", "")  # it does not apply
SAMPLING = "sampling/sampling_logp_difference/mean"

# Metric -> (green up to, red above). docs/metrics.md has the same numbers.
BOUNDS = {
    "frac_reward_zero_std": (0.5, 0.8),
    "completions/clipped_ratio": (0.05, 0.3),
    "completions/no_answer_ratio": (0.1, MOSTLY_UNREAD),  # likewise eval/no_answer_ratio
    "completions/no_reward_ratio": (0.1, 0.5),  # of those that are None; a fault is always red
    "kl": (1.0, 5.0),
    SAMPLING: (0.05, 0.2),
}
BLIND_SHARE = 0.5  # of the score, or of its rise, that needs no picture
RARELY_RIGHT = 0.02  # of the sampled answers; red where none ever was
MOSTLY = 0.9  # of the zero-std groups
LOST = "completions/no_reward_ratio"
SPLITS = {"held-out": "eval/", "out of distribution": "eval/ood_"}

LEAST_ADVANTAGE = 0.005  # smaller ones are shown as 0.00

FAULTS = {  # kinds of faults of a --reward, in words
    "exception": "exception",
    "wrong_length": "wrong number of values",
    "not_finite": "not a number (NaN, infinite)",
    "timeout": "timeout",
    "died": "process died",
}


class Light(NamedTuple):
    """level: "good", "watch", "bad" or "unknown". value: what was measured. advice: what to do."""

    name: str
    level: str
    value: str
    advice: str


def new_warnings(
    rows: list[Row], headline: str, warned: set[str], reward: str | None = None
) -> list[str]:
    """A line for each red light whose name is not in `warned`, which becomes the names of all."""
    red = [light for light in lights(rows, headline, [], reward) if light.level == "bad"]
    new = [light for light in red if light.name not in warned]
    warned.clear()
    warned.update(light.name for light in red)
    return [f"warning: {light.name}: {light.value}; {light.advice}" for light in new]


def lights(
    rows: list[Row], headline: str, skipped: list[str] | None, reward: str | None = None
) -> list[Light]:
    """All traffic lights of a run; those that do not apply (SFT has no groups) are left out.

    Args:
        skipped: lines about skipped data; None where run.json does not say. reward: the --reward.
    """
    too_long = "raise --max_completion_length, or charge for length with --overlong_weight"
    differs = "the two disagree on the same weights; use --dtype float32"
    not_finite = "they were skipped; lower --learning_rate or --beta, or use --dtype float32"
    overlap = "Overlap with the target (IoU), sampled"
    has_overlap = _right_metric(rows).endswith("/iou/mean")
    rules = {
        overlap if has_overlap else "Right answers sampled": _right(rows),
        "Unreadable answers": _unread(rows),
        "Most frequent answer": _uniform(rows, headline, reward),
        "Right answers against a constant answer": _skill(rows, headline),
        "Without looking": _blind(rows, headline),
        "Zero-std groups": _zero_std(rows, reward),
        "Truncated completions": _bounded(rows, "completions/clipped_ratio", too_long),
        "Completions without a reward": _lost(rows, reward),
        "KL to the starting model, nats per token": _kl(rows),
        "Sampler against trainer, nats per token": _bounded(rows, SAMPLING, differs),
        "Reward against held-out metric": _hacking(rows, headline),
        "Non-finite updates": _any(rows, "steps_skipped_nonfinite", not_finite),
    }
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
    return level, short(value) if metric in ("kl", SAMPLING) else f"{value:.1%}", advice


def _unread(rows: list[Row]) -> Rule:
    """Answers outside the task's grammar: sampled (the last steps), and greedy (the last ones)."""
    advice = "not of the form that the task reads: see the rollouts; train_sft.py teaches it"
    rules = [_bounded(rows, "completions/no_answer_ratio", advice)]
    evaluated = column(rows, "eval/no_answer_ratio")[-1:]
    last = [{"completions/no_answer_ratio": value} for value in evaluated]
    rules.append(_bounded(last, "completions/no_answer_ratio", advice))
    names = ("sampled", "held-out")
    return _worst([(name, rule) for name, rule in zip(names, rules, strict=True)])


def _uniform(rows: list[Row], headline: str, reward: str | None) -> Rule:
    """Does the model say one thing whatever it is asked?"""
    advice = "it says the same whatever it is asked: lower --learning_rate, or raise --beta"
    if reward and rises_alone(rows, headline) in ("watch", "bad"):
        advice = f"your reward pays for this answer: change {of_file(reward)}. Else: {advice}"
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
    compared = "better" if value < target else "as well"
    advice = f"always answering with the most frequent target would do {compared}"
    return level, f"{value:.1%} against {target:.1%}", advice


def _blind(rows: list[Row], headline: str) -> Rule:
    """Whether the score with the pictures of other questions rises along (arXiv:2601.06801)."""
    name, blind = f"eval/{headline}", f"eval/blind_{headline}"
    rows = [row for row in rows if name in row and blind in row]
    if len(rows) < 2:
        return NO_LIGHT
    told, right = column(rows, blind), column(rows, name)
    rises, p = (told[-1] - told[0], right[-1] - right[0]), max(told[0], told[-1])
    noise = 2 * math.sqrt(2 * p * (1 - p) / rows[-1].get("eval/n", 100))  # two standard errors
    level = "good"
    if told[-1] > BLIND_SHARE * right[-1]:
        level = "watch"
    if rises[0] > max(noise, BLIND_SHARE * rises[1]):
        level = "bad"
    value = f"{told[0]:.1%} -> {told[-1]:.1%} with the pictures of other questions, "
    value += f"{right[0]:.1%} -> {right[-1]:.1%} with its own"
    return level, value, "it learns to answer from the words: ask what only the picture tells"


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


def _lost(rows: list[Row], reward: str | None) -> Rule:
    """Completions without a reward: faults of a --reward, by kind, and those it said None for."""
    lost, total = lost_rewards(rows)
    if not total:
        return NO_LIGHT
    kinds = {text: sum(column(rows, f"reward/{kind}")) for kind, text in FAULTS.items()}
    level = "bad" if any(kinds.values()) else _bounded(rows, LOST, "")[0]
    kinds["None"] = lost - sum(kinds.values())
    by_kind = ", ".join(f"{text} {count:.0f}" for text, count in kinds.items() if count > 0)
    value = f"{lost} of {total} ({lost / total:.1%}): {by_kind}" if lost else f"0 of {total}"
    where = f"repair {of_file(reward) or 'it'}; reward_faults.jsonl has the first of each kind"
    return level, value, f"left out of training and of all means; {where}"


def _right_metric(rows: list[Row]) -> str:
    """The metric that says how right sampled answers are; "" if none does."""
    metrics = [f"{paid}/{part}/mean" for paid in ("rewards", "task") for part in RIGHT]
    return next((metric for metric in metrics if column(rows, metric)), "")


def _right(rows: list[Row]) -> Rule:
    """What is never sampled cannot be learnt. A --reward need not pay for what the task asks."""
    metric, rewards = _right_metric(rows), column(rows, "reward")
    if not metric.startswith("rewards/"):
        if column(rows, "completions/mean_length") and not rewards:
            return "bad", "no completion has a reward", "check --reward"
        if rewards and not any(rewards):
            return "bad", "the reward is always 0", "check --reward"
    if not metric:
        return NO_LIGHT
    value, values = tail_mean(rows, metric), column(rows, metric)
    shown = (
        f"{value:.1%} (training questions, last {min(tail_length(len(values)), len(values))} steps)"
    )
    if not metric.startswith("rewards/"):
        level = "watch" if value < 0.5 * values[0] else "good"
        shown = shown.replace(")", f"; {values[0]:.1%} at the first step)")
        return level, shown, "your reward pays less for the task's right answers than it did"
    remedy = "another --model, more training data, or train_sft.py first"
    if not any(values):
        return "bad", "never", f"what is never sampled cannot be learnt: {remedy}"
    level = "good" if value > RARELY_RIGHT else "watch"  # NaN: watch
    return level, shown, f"so rarely that it is slow: {remedy}"


def _zero_std(rows: list[Row], reward: str | None) -> Rule:
    """Groups whose rewards are all equal teach nothing, be they all right or all wrong."""
    names = ("frac_reward_zero_std", "frac_groups_all_right", "frac_groups_all_wrong")
    share, right, wrong = (tail_mean(rows, name) for name in names)
    level, value, _ = _bounded(rows, names[0], "")
    if level is None or column(rows, "critic/loss"):  # equal rewards teach where a critic is wrong
        return NO_LIGHT
    if right is None or wrong is None:  # a --reward does not say what is right
        value += " (every completion of these got the same reward)"
        what = f"let {of_file(reward) or 'the reward'} tell completions apart"
        return level, value, f"they teach nothing: {what}, or stop"
    value += f" ({right:.1%} all right, {wrong:.1%} all wrong)"
    when_wrong = "more --num_generations or training data, or --dense 1 (if the task has it)"
    metric = _right_metric(rows)
    if level == "good" and metric and not any(column(rows, metric)):
        return "watch", value, "no completion is right: the others differ in other parts alone"
    if right >= MOSTLY * share > 0 and level != "good":
        learnt = "the training questions are learnt; more steps on them teach little"
        return "good", f"{value}: {learnt}", ""
    advice = f"they teach nothing. All right: harder questions, or stop. All wrong: {when_wrong}"
    return level, value, f"they teach nothing: {when_wrong}" if wrong >= MOSTLY * share else advice


def _kl(rows: list[Row]) -> Rule:
    if column(
        rows, "rewards/kl/mean"
    ):  # --kl_in_reward: of whole completions, a part of the reward
        return NO_LIGHT
    if column(rows, "reward") and not column(rows, "kl"):
        return "unknown", "not measured", "needs --beta above 0"
    return _bounded(rows, "kl", "the policy is far away; raise --beta")


def _hacking(rows: list[Row], headline: str) -> Rule:
    level = rises_alone(rows, headline)
    if level is None:
        return NO_LIGHT
    (start, end), metric = trend(rows, "reward"), f"eval/{headline}"
    evaluations = [row for row in rows if metric in row]
    first, last = evaluations[0], evaluations[-1]
    value = f"reward {start:.2f} -> {end:.2f}, {METRIC_NAMES.get(headline, headline)} "
    value += change(first, last, metric)
    advice = "more reward, no better at the task: hacking or overfitting; see the rollouts"
    if last[metric] < first[metric]:
        advice = "more reward, worse at the task: reward hacking; see the rollouts"
    return level, value, advice
