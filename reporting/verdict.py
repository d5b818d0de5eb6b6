"""What the curves of a run mean: a few sentences, from its evaluations and the trend of its reward.

The rules read metrics.jsonl. Their bounds are rules of thumb. Next: reporting/lights.py.
"""

from pathlib import Path

TAIL, MIN_TAIL = 0.1, 5  # share of a metric's values, and their number: "now" is their mean
Row = dict[str, float]
RIGHT = ("correct", "iou")  # parts of a task's reward that say how right an answer is, in [0, 1]
METRIC_NAMES = {"iou": "mean IoU"}  # where the name alone would mislead
UNIFORM = (0.3, 0.5)  # `uniformity` of the evaluation's answers: green up to, red above
MOSTLY_UNREAD = 0.5  # of the answers


def column(rows: list[Row], name: str) -> list[float]:
    """The values of a metric where it was logged, the row of step 0 included."""
    return [row[name] for row in rows if name in row]


def tail_length(count: int) -> int:
    """How many of a metric's values "now" is the mean of."""
    return max(MIN_TAIL, round(TAIL * count))


def tail_mean(rows: list[Row], name: str) -> float | None:
    """Mean over the last tenth of the steps, five at least, of a metric that was logged."""
    values = column(rows, name)
    values = values[-tail_length(len(values)) :]
    return sum(values) / len(values) if values else None


def trend(rows: list[Row], name: str) -> tuple[float, float] | None:
    """Means of a metric over the first and the last steps: as many as "now", a quarter at most."""
    values = column(rows, name)
    if len(values) < 2:
        return None
    count = max(1, min(tail_length(len(values)), len(values) // 4))
    return sum(values[:count]) / count, sum(values[-count:]) / count


def short(value: float) -> str:
    """A number for a label: 0.973, 12.3, 11,234, 1.2e-06."""
    size = abs(value)
    if 999.5 <= size < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}" if 0.001 <= size < 1e6 or size == 0 else f"{value:.1e}"


def interval(row: Row, metric: str) -> tuple[float, float]:
    """The 95 % interval of a metric, or the value alone where none was logged."""
    return row.get(f"{metric}_low", row[metric]), row.get(f"{metric}_high", row[metric])


def of_file(reward: str | None) -> str | None:
    """The --reward as texts name it: one.py:pay of any/where/one.py:pay; None without one."""
    return reward and Path(reward).name


def rise(first: Row, last: Row, headline: str, is_verdict: bool = False) -> str:
    """base -> final, in words: the headline metric, then out of distribution.

    The console adds the metric `beside` it; the verdict adds the 95 % intervals instead.
    """
    line = f"held-out {METRIC_NAMES.get(headline, headline)} "
    line += change(first, last, f"eval/{headline}", has_interval=is_verdict)
    if not is_verdict and (more := beside(first, last, headline)):
        line += f" ({more})"
    if f"eval/ood_{headline}" in last:
        line += f", out of distribution {change(first, last, f'eval/ood_{headline}')}"
    return line


def beside(first: Row, last: Row, headline: str) -> str:
    """The metric that is printed beside the headline metric, if it has one of its own kind."""
    kinds = {"strict": ("loose", "loose"), "iou": ("boxes with IoU of at least 0.5:", "strict")}
    label, name = kinds.get(headline, ("", ""))
    return f"{label} {change(first, last, f'eval/{name}')}" if f"eval/{name}" in last else ""


def change(first: Row, last: Row, name: str, has_interval: bool = False) -> str:
    """The values of a metric in two rows, an early one of which may lack what a later one has."""
    values = []
    for row in (row for row in (first, last) if name in row):
        values.append(f"{row[name]:.1%}")
        if has_interval and f"{name}_low" in row:
            low, high = interval(row, name)
            values[-1] += f" [{100 * low:.1f}-{high:.1%}]"
    return " -> ".join(values)


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


def doubts(
    row: Row, headline: str, prefix: str = "eval/", common_answer: str | None = None
) -> list[str]:
    """What a good number of this evaluation hides: one answer to all, no skill, no answers.

    Args:
        common_answer: the text of the most frequent answer, where it is known.
    """
    found, unread = [], row.get(f"{prefix}no_answer_ratio", 0.0)
    answer, target = (row.get(f"{prefix}top_{what}_share", 0.0) for what in ("answer", "target"))
    right = row[f"{prefix}{headline}"]
    what = "held-out " if prefix == "eval/" else ""
    if (uniformity(row, prefix) or 0.0) > UNIFORM[1]:
        named = f" ({common_answer[:60]!r})" if common_answer else ""
        found.append(
            f"Collapsed to one answer{named}, given to {answer:.1%} of the {what}questions, while "
            f"no answer is right for more than {target:.1%}"
        )
    elif has_no_skill(row, headline, prefix):
        found.append(
            f"{right:.1%} right, {'less' if right < target else 'not clearly more'} than always "
            f"answering with the most frequent target ({target:.1%})"
        )
    if unread > MOSTLY_UNREAD:
        greedy = " (greedy)" if what else ""
        found.append(
            f"{unread:.1%} of the {what}answers{greedy} cannot be read as answers of this task"
        )
    return found


def rises_alone(rows: list[Row], headline: str) -> str | None:
    """Does the reward rise for something that the held-out metric does not see?

    Returns: "good", "watch" where the metric is no better for it, "bad" where it is much worse;
    None where there is nothing to compare.
    """
    metric, reward = f"eval/{headline}", trend(rows, "reward")
    evaluations = [row for row in rows if metric in row]
    if reward is None or len(evaluations) < 2:
        return None
    first, last = evaluations[0][metric], evaluations[-1][metric]
    low, high = interval(evaluations[0], metric)
    gain = reward[1] - reward[0]
    noise = (trend(rows, "reward_std") or (0.0, 0.0))[0]
    if gain > 0 and first - last > 2 * (first - low) > 0:
        return "bad"
    if gain > 0 and last < low or gain > 0.5 * noise and last <= high:
        return "watch"
    return "good"


def lost_rewards(rows: list[Row]) -> tuple[int, int]:
    """How many completions of the run had no reward, and of how many; (0, 0) if not counted."""
    lost = total = 0
    for row in rows:
        if "completions/no_reward_ratio" in row:
            count = round(row["completion_tokens"] / row["completions/mean_length"])
            lost += round(row["completions/no_reward_ratio"] * count)
            total += count
    return lost, total


def _reasons(rows: list[Row], headline: str, reward: str | None) -> list[str]:
    """Sentences on the reward: what else than right answers it rose for, and where it was lost."""
    found, (lost, total) = [], lost_rewards(rows)
    if rises_alone(rows, headline) in ("watch", "bad"):
        start, end = trend(rows, "reward")
        evaluations = [row for row in rows if f"eval/{headline}" in row]
        named = f" ({of_file(reward)})" if reward else ""
        sentence = f"The reward{named} rose {start:.2f} -> {end:.2f}"
        parts = (trend(rows, f"rewards/{part}/mean") for part in ("format", *RIGHT))
        (low, high), *right = (part or (0.0, 0.0) for part in parts)
        if high - low > sum(after - before for before, after in right):
            sentence += f" through its format part ({low:.1%} -> {high:.1%}): the tags are paid, "
            found.append(sentence + "whatever is between them")
        else:
            sentence += f" while held-out {METRIC_NAMES.get(headline, headline)} went "
            sentence += change(evaluations[0], evaluations[-1], f"eval/{headline}")
            found.append(sentence + (": it pays for something else" if reward else ""))
    if lost:
        found.append(f"{lost} of {total} completions ({lost / total:.1%}) had no reward")
    return found


def _outcome(first: Row, last: Row, metric: str) -> str:
    """Better or worse than the start, going by the interval of the start."""
    (low, high), (last_low, last_high) = interval(first, metric), interval(last, metric)
    if low <= last[metric] <= high:
        return "No change beyond chance from the start"
    outcome = f"{'Better' if last[metric] > high else 'Worse'} than the start"
    overlap = last_low <= high and last_high >= low
    return f"{outcome}, though the 95 % intervals overlap" if overlap else outcome


def verdict(
    rows: list[Row],
    headline: str,
    max_steps: int,
    reward: str | None = None,
    common_answer: str | None = None,
    is_running: bool = True,
) -> str:
    """How far the run came, what it brought, and why it brought nothing, in a few sentences.

    Args:
        reward: the --reward of the run. common_answer: as for `doubts`. is_running: whether more
            steps may come.
    """
    metric = f"eval/{headline}"
    evaluations = [row for row in rows if metric in row]
    done = int(rows[-1]["step"]) if rows else 0
    is_stopped = done < max_steps and not is_running
    progress = f"{'Stopped after ' if is_stopped else ''}{done} of {max_steps} steps"
    if not evaluations:
        return f"{progress}: not evaluated yet."
    first, last = evaluations[0], evaluations[-1]
    if last is first:
        value = f"held-out {METRIC_NAMES.get(headline, headline)} {first[metric]:.1%}"
        return f"{progress}, not evaluated since the start: {value}."
    sentences = [_outcome(first, last, metric)]
    if found := doubts(last, headline, common_answer=common_answer):
        # Then it is not "better", whatever the numbers are.
        sentences = found + (sentences if sentences[0].startswith("Worse") else [])
    sentences += _reasons(rows, headline, reward)
    sentences.append(f"{progress}: {rise(first, last, headline, is_verdict=True)}")
    return ". ".join(sentences) + "."
