"""The verdict follows the metrics, says what they hide, and why the reward rose without them."""

import pytest

from reporting.verdict import rise, verdict
from training.evaluation import wilson_interval

BOXES = "boxes with IoU of at least 0.5:"


def steps(count: int, **columns) -> list[dict]:
    """Rows 0..count; a column is a number or a function of the share of the run that is done."""
    rows = [{"step": 0, "eval/strict": 0.3, "eval/strict_low": 0.25, "eval/strict_high": 0.35}]
    for step in range(1, count + 1):
        values = {k: v(step / count) if callable(v) else v for k, v in columns.items()}
        rows.append({"step": step, "reward_std": 0.4} | values)
    return rows


@pytest.mark.parametrize(
    "last, words",
    [(0.9, "Better than the start."), (0.33, "No change beyond chance"), (0.1, "Worse than the")],
)
def test_the_verdict_compares_with_the_interval_of_the_start(last, words):
    rows = steps(10)
    assert verdict([], "strict", 20) == "0 of 20 steps: not evaluated yet."
    assert verdict(rows, "strict", 20) == (
        "10 of 20 steps, not evaluated since the start: held-out strict 30.0%."
    )
    stopped = verdict(rows, "strict", 20, is_running=False)
    assert stopped.startswith("Stopped after 10 of 20 steps, not evaluated since the start")
    sentence = verdict([*rows, {"step": 10, "eval/strict": last}], "strict", 20)
    assert sentence.startswith(words) and "10 of 20 steps" in sentence
    assert f"30.0% [25.0-35.0%] -> {last:.1%}" in sentence


@pytest.mark.parametrize(
    "low, high, words",
    [
        (0.33, 0.5, "Better than the start, though the 95 % in"),
        (0.36, 0.5, "Better than the start."),
    ],
)
def test_intervals_that_overlap_are_said_to(low, high, words):
    end = {"step": 10, "eval/strict": 0.4, "eval/strict_low": low, "eval/strict_high": high}
    said = verdict([*steps(10), end], "strict", 10)
    assert said.startswith(words) and f"40.0% [{100 * low:.1f}-{high:.1%}]" in said


@pytest.mark.parametrize(
    "headline, words",
    [
        ("strict", "held-out strict 30.0% -> 60.0% (loose 90.0% -> 95.0%)"),
        ("iou", f"held-out mean IoU 40.0% -> 70.0% ({BOXES} 30.0% -> 60.0%)"),
        ("mAP", "held-out mAP 10.0% -> 20.0%"),
    ],
)
def test_what_is_printed_beside_the_headline_metric_is_of_its_own_kind(headline, words):
    names = ("strict", "loose", "iou", "mAP", "ood_strict")
    pairs = ((0.3, 0.6), (0.9, 0.95), (0.4, 0.7), (0.1, 0.2), (0.2, 0.5))
    rows = [
        {f"eval/{name}": pair[i] for name, pair in zip(names, pairs, strict=True)} for i in (0, 1)
    ]
    more = ", out of distribution 20.0% -> 50.0%" if headline == "strict" else ""
    assert rise(*rows, headline) == words + more


def trained(strict: float, reward: tuple[float, float], **parts: tuple[float, float]) -> list[dict]:
    """A run of 20 steps to `strict` whose reward and its parts go from one value to another."""

    def line(ends):
        return lambda done: ends[0] + (ends[1] - ends[0]) * (done > 0.5)

    columns = {f"rewards/{name}/mean": line(ends) for name, ends in parts.items()}
    return [*steps(20, reward=line(reward), **columns), {"step": 20, "eval/strict": strict}]


@pytest.mark.parametrize(
    "rows, reward, words",
    [
        (
            trained(0.0, (0.02, 1.29)),
            "a/one.py:pay",
            "The reward (one.py:pay) rose 0.02 -> 1.29 while held-out strict went 30.0% -> 0.0%: "
            "it pays for something else.",
        ),
        (
            trained(0.3, (0.3, 0.6), correct=(0.1, 0.1), format=(0.4, 1.0)),
            None,
            "The reward rose 0.30 -> 0.60 through its format part (40.0% -> 100.0%): the tags are "
            "paid, whatever is between them.",
        ),
        (
            trained(0.3, (0.3, 0.9), correct=(0.1, 0.7), format=(0.9, 1.0)),
            None,
            "The reward rose 0.30 -> 0.90 while held-out strict went 30.0% -> 30.0%.",
        ),
        (trained(0.9, (0.3, 0.9)), None, ""),
    ],
)
def test_the_verdict_says_what_a_reward_rose_for_that_the_metric_does_not_see(rows, reward, words):
    said = verdict(rows, "strict", 20, reward)
    assert words in said and ("The reward" in said) == bool(words)


def test_the_verdict_counts_the_completions_that_had_no_reward():
    counts = {"completions/no_reward_ratio": 0.25, "completions/mean_length": 10.0}
    rows = steps(20, reward=1.0, completion_tokens=40.0, **counts)
    said = verdict([*rows, {"step": 20, "eval/strict": 0.9}], "strict", 20)
    assert "Better than the start. 20 of 80 completions (25.0%) had no reward. 20 of" in said


def evaluated(strict: float, answer: float, target: float, n: int = 320, **more) -> list[dict]:
    """A run from 0 % to `strict`: shares of the most frequent answer and target at its end."""
    low, high = wilson_interval(strict, n)
    start = {"step": 0, "eval/strict": 0.0, "eval/strict_low": 0.0, "eval/strict_high": 0.01}
    end = {"step": 9, "eval/strict": strict, "eval/strict_low": low, "eval/strict_high": high}
    shares = {"eval/top_answer_share": answer, "eval/top_target_share": target}
    return [start | shares, end | shares | {f"eval/{name}": value for name, value in more.items()}]


@pytest.mark.parametrize(
    "strict, answer, target, words",
    [
        (0.10, 0.64, 0.1, "Collapsed to one answer, given to 64.0% of the held-out questions"),
        (0.33, 1.00, 0.33, "Collapsed to one answer, given to 100.0%"),
        (0.95, 1.00, 0.95, "Collapsed to one answer, given to 100.0%"),
        (0.50, 1.00, 0.5, "Collapsed to one answer, given to 100.0%"),
        (0.12, 0.14, 0.1, "12.0% right, not clearly more than always answering with the most"),
        (0.40, 0.50, 0.39, "40.0% right, not clearly more than always answering with the most"),
        (0.02, 0.14, 0.1, "2.0% right, less than always answering with the most"),
        (0.60, 0.50, 0.39, "Better than the start."),
        (0.90, 0.06, 0.033, "Better than the start."),
        (0.90, 0.90, 1.0, "Better than the start."),  # one target only: nothing to compare with
    ],
)
def test_a_policy_that_says_one_thing_is_never_just_better_than_the_start(
    strict, answer, target, words
):
    said = verdict(evaluated(strict, answer, target), "strict", 9)
    assert said.startswith(words) and ("Better" in said) == words.startswith("Better")
    assert f"held-out strict 0.0% [0.0-1.0%] -> {strict:.1%} [" in said


def test_the_verdict_counts_answers_that_the_tasks_grammar_cannot_read():
    said = verdict(evaluated(0.3, 0.05, 0.05, no_answer_ratio=0.988), "strict", 9)
    assert (
        said.startswith("98.8% of the held-out answers (greedy) cannot be read")
        and "Better" not in said
    )
    assert verdict(evaluated(0.3, 0.05, 0.05, no_answer_ratio=0.2), "strict", 9)[:6] == "Better"


def test_the_verdict_of_a_collapsed_run_names_the_answer():
    said = verdict(evaluated(0.0, 1.0, 0.1), "strict", 9, common_answer="Solara vernalis")
    assert said.startswith("Collapsed to one answer ('Solara vernalis'), given to 100.0% of the he")
    assert "always answering" not in said  # that is the same fault again
