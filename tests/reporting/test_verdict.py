"""The verdict and the traffic lights follow the metrics; what is not green comes with advice."""

import pytest

from reporting.verdict import lights, new_warnings, verdict
from training.evaluation import wilson_interval

NAN = float("nan")
ZERO, RIGHT, SKIPPED = "Zero-std groups", "Right answers sampled", "Skipped data"
SHARES = ("frac_reward_zero_std", "frac_groups_all_right", "frac_groups_all_wrong")
UNREAD, SAME = "Unreadable answers", "Most frequent answer"
UNREADS = ("completions/no_answer_ratio", "eval/no_answer_ratio")
TOP = ("eval/top_answer_share", "eval/top_target_share")
KL = "KL to the starting model, nats per token"
SAMPLER = "Sampler against trainer, nats per token"


def steps(count: int, **columns) -> list[dict]:
    """Rows 0..count; a column is a number or a function of the share of the run that is done."""
    rows = [{"step": 0, "eval/strict": 0.3, "eval/strict_low": 0.25, "eval/strict_high": 0.35}]
    for step in range(1, count + 1):
        values = {k: v(step / count) if callable(v) else v for k, v in columns.items()}
        rows.append({"step": step, "reward_std": 0.4} | values)
    return rows


@pytest.mark.parametrize(
    "name, metric, value, level, shown",
    [
        (ZERO, "frac_reward_zero_std", 0.9, "bad", "90.0%"),
        (ZERO, "frac_reward_zero_std", 0.6, "watch", "60.0%"),
        (ZERO, "frac_reward_zero_std", 0.1, "good", "10.0%"),
        (ZERO, "frac_reward_zero_std", lambda done: float(done < 0.5), "good", "0.0%"),  # the last
        # Zero-std groups are fine where they are all right.
        (ZERO, SHARES, (0.78, 0.75, 0.03), "good", "78.0% (75.0% all right, 3.0% all wrong): "),
        (ZERO, SHARES, (0.95, 0.95, 0.0), "good", "95.0% (95.0% all right, 0.0% all wrong): "),
        (ZERO, SHARES, (0.95, 0.0, 0.95), "bad", "95.0% (0.0% all right, 95.0% all wrong);"),
        (ZERO, SHARES, (0.6, 0.3, 0.3), "watch", "60.0% (30.0% all right, 30.0% all wrong);"),
        (ZERO, SHARES, (0.3, 0.3, 0.0), "good", "30.0% (30.0% all right, 0.0% all wrong);"),
        ("Truncated completions", "completions/clipped_ratio", 0.4, "bad", "40.0%"),
        (UNREAD, "completions/no_answer_ratio", 0.2, "watch", "sampled 20.0%"),
        (UNREAD, "eval/no_answer_ratio", 0.98, "bad", "held-out 98.0%"),
        (UNREAD, UNREADS, (0.09, 0.988), "bad", "sampled 9.0%, held-out 98.8%"),
        (UNREAD, UNREADS, (0.6, 0.0), "bad", "sampled 60.0%, held-out 0.0%"),
        (UNREAD, UNREADS, (0.0, 0.0), "good", "sampled 0.0%, held-out 0.0%"),
        ("Completions without a reward", "completions/no_reward_ratio", 0.2, "watch", "20.0%"),
        (SAME, TOP, (0.64, 0.1), "bad", "held-out 64.0% (targets: 10.0% at most)"),
        (SAME, TOP, (1.0, 0.5), "bad", "held-out 100.0% (targets: 50.0% at most)"),
        (SAME, TOP, (1.0, 0.95), "bad", "held-out 100.0% (targets: 95.0% at most)"),
        (SAME, TOP, (0.57, 0.35), "watch", "held-out 57.0%"),
        (SAME, TOP, (0.35, 0.35), "good", "held-out 35.0%"),
        (SAME, TOP, (0.1, 0.03), "good", "held-out 10.0%"),
        (KL, "kl", 0.5, "good", "0.5"),
        (KL, "kl", 7.0, "bad", "7"),
        (KL, "kl", NAN, "bad", "nan"),
        (KL, "entropy", 1.0, "unknown", "not measured"),
        (SAMPLER, "sampling/sampling_logp_difference/mean", 0.3, "bad", "0.3"),
        (SAMPLER, "sampling/sampling_logp_difference/mean", NAN, "bad", "nan"),
        ("Non-finite updates", "steps_skipped_nonfinite", lambda done: done < 0.1, "bad", "1"),
        ("Your reward: exception", "reward/exception", 2.0, "bad", "40 completions"),
        ("Faults of your reward", "reward/exception", 0.0, "good", "0"),
        (RIGHT, "rewards/correct/mean", 0.0, "bad", "never"),
        (RIGHT, "rewards/correct/mean", 0.01, "watch", "1.0%"),
        (RIGHT, "rewards/correct/mean", lambda done: 0.5 * (done < 0.5), "watch", "0.0%"),
        (RIGHT, "rewards/correct/mean", NAN, "watch", "nan%"),
        (RIGHT, "rewards/correct/mean", 0.3, "good", "30.0%"),
        (RIGHT, "rewards/iou/mean", 0.0, "bad", "never"),
        (RIGHT, "rewards/iou/mean", 0.3, "good", "mean IoU 30.0%"),
        (SKIPPED, "kl", 0.0, "good", "none"),
    ],
)
def test_a_light_follows_its_metric_and_says_what_to_do(name, metric, value, level, shown):
    is_one = isinstance(metric, str)
    columns = {metric: value} if is_one else dict(zip(metric, value, strict=True))
    found = lights(steps(20, reward=1.0, **columns), "strict", [])
    (light,) = (light for light in found if light.name == name)
    assert light.level == level and bool(light.advice) == (level != "good")
    assert f"{light.value}; {light.advice}".startswith(shown)
    if metric is SHARES and light.advice:
        assert ("All right: harder questions" in light.advice) == (value[1] > 0)


def test_lights_that_do_not_apply_are_left_out():
    def names(**columns) -> list[str]:
        return [light.name for light in lights(steps(3, **columns), "strict", [])]

    assert names(loss=0.1) == [SKIPPED]  # supervised fine-tuning
    assert RIGHT not in names(reward=0.5, **{"rewards/user/mean": 0.5})
    assert lights(steps(3, loss=0.1), "strict", None) == []
    (light,) = lights(steps(3), "strict", ["2 of 90 records skipped; no image: a.png"])
    assert light.level == "watch" and "a.png" in light.value


@pytest.mark.parametrize(
    "reward_end, strict_end, level",
    [
        (1.5, 0.9, "good"),
        (1.5, 0.31, "watch"),  # more reward, no better
        (1.05, 0.24, "watch"),  # a little worse: may be chance
        (1.05, 0.1, "bad"),  # far worse, and still more reward
        (0.9, 0.1, "good"),  # worse, and less reward: no hacking
        (1.0, 0.3, "good"),
    ],
)
def test_a_reward_that_rises_alone_is_suspicious(reward_end, strict_end, level):
    rows = steps(50, reward=lambda done: 1 + (reward_end - 1) * done)
    found = lights([*rows, {"step": 50, "eval/strict": strict_end}], "strict", None)
    assert [x.level for x in found if x.name == "Reward against held-out metric"] == [level]


def test_a_red_light_warns_once_while_it_lasts():
    warned: set[str] = set()
    bad, good = steps(9, reward=1.0, kl=9.0), steps(9, reward=1.0, kl=0.1)
    line = f"warning: {KL}: 9; the policy is far away; raise --beta"
    assert new_warnings(bad, "strict", warned) == [line]
    assert new_warnings(bad, "strict", warned) == [] and warned == {KL}
    assert new_warnings(good, "strict", warned) == [] and warned == set()
    assert new_warnings(bad, "strict", warned) == [line]


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
    rows[0]["eval/loose"] = 0.99
    sentence = verdict([*rows, {"step": 10, "eval/strict": last, "eval/loose": 1.0}], "strict", 20)
    assert sentence.startswith(words) and "10 of 20 steps" in sentence
    assert f"30.0% -> {last:.1%} (loose 99.0% -> 100.0%)" in sentence


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
        (0.10, 0.64, 0.1, "Collapsed to one answer, given to 64.0% of the questions"),
        (0.33, 1.00, 0.33, "Collapsed to one answer, given to 100.0%"),
        (0.95, 1.00, 0.95, "Collapsed to one answer, given to 100.0%"),
        (0.50, 1.00, 0.5, "Collapsed to one answer, given to 100.0%"),
        (0.12, 0.14, 0.1, "12.0% right, not clearly more than always answering with the most"),
        (0.40, 0.50, 0.39, "40.0% right, not clearly more than always answering with the most"),
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
    assert f"0.0% -> {strict:.1%}" in said


def test_the_verdict_counts_answers_that_the_tasks_grammar_cannot_read():
    said = verdict(evaluated(0.3, 0.05, 0.05, no_answer_ratio=0.988), "strict", 9)
    assert said.startswith("98.8% of the answers cannot be read") and "Better" not in said
    assert verdict(evaluated(0.3, 0.05, 0.05, no_answer_ratio=0.2), "strict", 9)[:6] == "Better"


def test_the_model_as_it_came_is_not_called_collapsed():
    start = evaluated(0.1, 1.0, 0.1)[:1]
    assert {x.name for x in lights(start, "strict", None)} & {SAME} == set()


def test_a_run_without_any_reward_is_red():
    rows = steps(9, **{"completions/mean_length": 9.0, "completions/no_reward_ratio": 1.0})
    levels = {x.name: x.level for x in lights(rows, "strict", None)}
    assert levels[RIGHT] == "bad" and levels["Completions without a reward"] == "bad"


def test_red_lights_come_first():
    found = lights(steps(20, reward=1.0, kl=0.1, **{"reward/exception": 1.0}), "strict", [])
    assert [x.level for x in found] == sorted(
        (x.level for x in found), key=("bad", "watch", "good", "unknown").index
    )
    assert found[0].name == "Your reward: exception"


def test_a_reward_of_the_user_that_is_always_zero_is_red():
    for reward, level in ((0.0, "bad"), (0.5, None)):
        found = {x.name: x.level for x in lights(steps(9, reward=reward), "strict", None)}
        assert found.get(RIGHT) == level
