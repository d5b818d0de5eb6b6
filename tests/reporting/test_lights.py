"""The traffic lights follow the metrics; what is not green comes with advice."""

import pytest

from reporting.lights import lights, new_warnings
from tests.reporting.test_verdict import evaluated, steps

NAN = float("nan")
ZERO, RIGHT, SKIPPED = "Zero-std groups", "Right answers sampled", "Skipped data"
SHARES = ("frac_reward_zero_std", "frac_groups_all_right", "frac_groups_all_wrong")
LOST, OVERLAP = "Completions without a reward", "Overlap with the target (IoU), sampled"
LOSSES = ("completions/no_reward_ratio", "completion_tokens", "completions/mean_length")
LOSSES += ("reward/exception", "reward/not_finite")
UNREAD, SAME = "Unreadable answers", "Most frequent answer"
UNREADS = ("completions/no_answer_ratio", "eval/no_answer_ratio")
TOP = ("eval/top_answer_share", "eval/top_target_share")
KL = "KL to the starting model, nats per token"
SAMPLER = "Sampler against trainer, nats per token"


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
        (LOST, LOSSES, (0.0, 40, 10, 0, 0), "good", "0 of 80"),
        (LOST, LOSSES, (0.25, 40, 10, 0, 0), "watch", "20 of 80 (25.0%): None 20;"),
        (LOST, LOSSES, (0.75, 40, 10, 0, 0), "bad", "60 of 80 (75.0%): None 60;"),
        (LOST, LOSSES, (0.5, 40, 10, 1, 0.5), "bad", "40 of 80 (50.0%): exception 20, not a n"),
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
        (RIGHT, "rewards/correct/mean", 0.0, "bad", "never"),
        (RIGHT, "rewards/correct/mean", 0.01, "watch", "1.0% (training questions, last 5 st"),
        (RIGHT, "rewards/correct/mean", lambda done: 0.5 * (done < 0.5), "watch", "0.0%"),
        (RIGHT, "rewards/correct/mean", NAN, "watch", "nan%"),
        (RIGHT, "rewards/correct/mean", 0.3, "good", "30.0%"),
        (OVERLAP, "rewards/iou/mean", 0.0, "bad", "never"),
        (OVERLAP, "rewards/iou/mean", 0.3, "good", "30.0%"),
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


def test_the_model_as_it_came_is_not_called_collapsed():
    start = evaluated(0.1, 1.0, 0.1)[:1]
    assert {x.name for x in lights(start, "strict", None)} & {SAME} == set()


def test_a_run_without_any_reward_is_red():
    lengths = {"completions/mean_length": 9.0, "completion_tokens": 72.0}
    rows = steps(9, **lengths, **{"completions/no_reward_ratio": 1.0})
    levels = {x.name: x.level for x in lights(rows, "strict", None)}
    assert levels[RIGHT] == "bad" and levels["Completions without a reward"] == "bad"


def test_red_lights_come_first():
    shares = {"completions/no_answer_ratio": 0.2, "completions/clipped_ratio": 0.9}
    found = lights(steps(20, reward=1.0, kl=0.1, **shares), "strict", [])
    assert [x.level for x in found] == sorted(
        (x.level for x in found), key=("bad", "watch", "good", "unknown").index
    )
    assert found[0].name == "Truncated completions"


def test_a_reward_of_the_user_that_is_always_zero_is_red():
    for reward, level in ((0.0, "bad"), (0.5, None)):
        found = {x.name: x.level for x in lights(steps(9, reward=reward), "strict", None)}
        assert found.get(RIGHT) == level


@pytest.mark.parametrize(
    "strict_end, advice", [(0.1, "your reward pays for this answer"), (0.9, "it says the same")]
)
def test_a_collapse_under_a_reward_of_the_user_is_first_of_all_the_rewards(strict_end, advice):
    """Where that reward rose, and the held-out metric did not."""
    rows = steps(50, reward=lambda done: 2 * done)
    end = {"step": 50, "eval/strict": strict_end}
    shares = {"eval/top_answer_share": 1.0, "eval/top_target_share": 0.1}
    found = lights([rows[0] | shares, *rows[1:], end | shares], "strict", None, "a/one.py:pay")
    (light,) = (light for light in found if light.name == SAME)
    assert light.level == "bad" and light.advice.startswith(advice)
    assert ("change one.py:pay" in light.advice) == (strict_end < 0.3)


@pytest.mark.parametrize(
    "share, level, shown",
    [(0.0, "watch", "0.0% ("), (0.3, "good", "30.0% ("), (0.9, "good", "90.0% (")],
)
def test_with_a_reward_of_the_user_the_tasks_right_answers_are_compared_with_the_first_step(
    share, level, shown
):
    right = {"task/correct/mean": lambda done: 0.4 if done < 0.1 else share}
    found = lights(steps(20, reward=1.0, **right), "strict", None, "one.py:pay")
    (light,) = (light for light in found if light.name == RIGHT)
    assert light.level == level and light.value.startswith(shown)
    assert light.value.endswith("40.0% at the first step)")


def test_zero_std_groups_say_what_they_hide():
    """A --reward does not say what is right; groups that are never right are no good."""
    paid = steps(20, reward=1.3, frac_reward_zero_std=0.9)
    with_critic = [row | {"critic/loss": 0.1} for row in paid]
    assert ZERO not in [light.name for light in lights(with_critic, "strict", [])]
    (light,) = (x for x in lights(paid, "strict", None, "one.py:pay") if x.name == ZERO)
    assert "every completion of these got the same reward" in light.value
    assert "All right" not in light.advice and "let one.py:pay tell" in light.advice
    never = steps(20, reward=0.5, **dict(zip(SHARES, (0.1, 0.0, 0.1), strict=True)))
    for row in never[1:]:
        row["rewards/correct/mean"] = 0.0
    (light,) = (x for x in lights(never, "strict", None) if x.name == ZERO)
    assert light.level == "watch" and "no completion is right" in light.advice


def test_a_constant_answer_that_would_do_better_is_said_to():
    for strict, words in ((0.0, "would do better"), (0.1, "would do as well")):
        found = lights(evaluated(strict, 0.2, 0.1), "strict", None)
        (light,) = (x for x in found if x.name == "Right answers against a constant answer")
        assert light.level == "bad" and light.advice.endswith(words)


def test_first_and_last_steps_of_a_short_run_do_not_overlap():
    """Eight steps are no reason to average five at either end, which hides half of a rise."""
    values = (0.27, 0.37, 0.39, 0.39, 0.38, 0.42, 0.45, 0.44)
    rows = [{"step": 0, "eval/strict": 0.3, "eval/strict_low": 0.25, "eval/strict_high": 0.35}]
    rows += [{"step": s, "reward": v, "reward_std": 0.2} for s, v in enumerate(values, start=1)]
    found = lights([*rows, {"step": 8, "eval/strict": 0.3}], "strict", None)
    (light,) = (x for x in found if x.name == "Reward against held-out metric")
    assert light.level == "watch" and light.value == "reward 0.32 -> 0.45, strict 30.0% -> 30.0%"


@pytest.mark.parametrize(
    "blind, right, level",
    [
        ((0.03, 0.03), (0.3, 0.9), "good"),
        ((0.2, 0.24), (0.3, 0.45), "watch"),  # more than half of what it says needs no picture
        ((0.2, 0.45), (0.3, 0.6), "bad"),  # most of the rise is blind
        ((0.2, 0.24), (0.4, 0.42), "watch"),  # a rise within noise is none
    ],
)
def test_a_rise_that_needs_no_picture_is_red(blind, right, level):
    rows = [
        {"step": 10 * k, "eval/strict": right[k], "eval/blind_strict": blind[k]} for k in (0, 1)
    ]
    (light,) = [found for found in lights(rows, "strict", None) if found.name == "Without looking"]
    assert light.level == level
    assert f"{blind[0]:.1%} -> {blind[1]:.1%}" in light.value and (level == "good") == (
        not light.advice
    )


def test_without_a_blind_evaluation_there_is_no_such_light():
    rows = [{"step": k, "eval/strict": 0.5} for k in (0, 10)]
    assert "Without looking" not in [light.name for light in lights(rows, "strict", None)]
