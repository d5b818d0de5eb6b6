"""The verdict and the traffic lights follow the metrics; what is not green comes with advice."""

import pytest

from reporting.verdict import lights, new_warnings, verdict

NAN = float("nan")
ZERO, RIGHT, SKIPPED = "Zero-std groups", "Right answers sampled", "Skipped data"
SHARES = ("frac_reward_zero_std", "frac_groups_all_right", "frac_groups_all_wrong")
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
        ("Unparsable answers", "completions/no_answer_ratio", 0.2, "watch", "20.0%"),
        (KL, "kl", 0.5, "good", "0.5"),
        (KL, "kl", 7.0, "bad", "7"),
        (KL, "kl", NAN, "bad", "nan"),
        (KL, "entropy", 1.0, "unknown", "not measured"),
        (SAMPLER, "sampling/sampling_logp_difference/mean", 0.3, "bad", "0.3"),
        (SAMPLER, "sampling/sampling_logp_difference/mean", NAN, "bad", "nan"),
        ("Non-finite updates", "steps_skipped_nonfinite", lambda done: done < 0.1, "bad", "1"),
        ("Your reward: exception", "reward/exception", 2.0, "bad", "40"),
        (RIGHT, "rewards/correct/mean", 0.0, "bad", "never"),
        (RIGHT, "rewards/correct/mean", 0.01, "watch", "1.0%"),
        (RIGHT, "rewards/correct/mean", lambda done: 0.5 * (done < 0.5), "watch", "0.0%"),
        (RIGHT, "rewards/correct/mean", NAN, "watch", "nan%"),
        (RIGHT, "rewards/correct/mean", 0.3, "good", "30.0%"),
        (RIGHT, "rewards/iou/mean", 0.0, "bad", "never"),
        (SKIPPED, "kl", 0.0, "good", "none"),
    ],
)
def test_a_light_follows_its_metric_and_says_what_to_do(name, metric, value, level, shown):
    columns = dict(zip(metric, value, strict=True)) if metric is SHARES else {metric: value}
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


def test_a_reward_of_the_user_that_is_always_zero_is_red():
    for reward, level in ((0.0, "bad"), (0.5, None)):
        found = {x.name: x.level for x in lights(steps(9, reward=reward), "strict", None)}
        assert found.get(RIGHT) == level
