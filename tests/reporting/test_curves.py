"""Metrics become curves inside their axes: small, drawable, with readable labels."""

import numpy as np
import pytest

from reporting.page import curves
from reporting.verdict import tail_mean


def points(text: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def panels(*runs: list[dict], headline: str = "strict") -> dict[str, dict]:
    measured = [("ab"[r], headline, rows) for r, rows in enumerate(runs)]
    drawn = curves.panels(measured) + curves.panels(measured, curves.SPEED_PANELS)
    return {panel["title"].split(",")[0]: panel for panel in drawn}


def test_a_curve_runs_from_the_first_step_to_the_last_inside_its_axes():
    panel = panels([{"step": s, "reward": s / 5} for s in range(1, 11)])["Reward"]
    drawn = points(panel["curves"][0]["raw"])
    assert (panel["low"], panel["high"]) == ("0", "2")
    assert drawn[0][0] == curves.LEFT and drawn[-1] == (curves.WIDTH - curves.RIGHT, curves.TOP)
    assert drawn[0][1] == pytest.approx(curves.TOP + 0.9 * 104)  # 0.1 of the way up


def test_long_and_broken_curves_stay_small_and_drawable():
    rows = [{"step": s, "reward": s % 7, "kl": 0.0, "eval/strict": s // 30} for s in range(5000)]
    rows[17]["reward"], rows[18]["reward"] = float("nan"), float("inf")
    drawn = panels(rows)
    titles = ("Reward", "KL to the start", "Held out")
    reward, kl, evaluation = (drawn[title]["curves"][0] for title in titles)
    assert len(points(reward["raw"])) <= curves.MAX_POINTS
    assert points(reward["raw"])[-1][0] == curves.WIDTH - curves.RIGHT
    smooth, raw = ([y for _, y in points(reward[kind])] for kind in ("smooth", "raw"))
    assert np.std(smooth) < 0.5 * np.std(raw)
    assert points(evaluation["smooth"])[-1][1] == curves.TOP and not evaluation["raw"]  # as it is
    assert all(np.isfinite(points(kl["smooth"])).ravel())


@pytest.mark.parametrize("count", [3, 10, 150, 5000])
def test_the_number_of_a_legend_is_where_its_curve_ends_and_what_the_lights_read(count):
    """Not the last raw step beside a smoothed curve: 9 steps of 1 and a last one of 0."""
    rows = [{"step": s, "reward": float(s % 10 != 0)} for s in range(1, count + 1)]
    curve = panels(rows)["Reward"]["curves"][0]
    now = tail_mean(rows, "reward") if count > 5 else 1.0  # drawn as it is: the last step
    assert curve["last"] == curves.short(now)
    top, bottom = curves.TOP, curves.HEIGHT - curves.BOTTOM
    assert points(curve["smooth"])[-1][1] == pytest.approx(bottom + now * (top - bottom), abs=0.1)


def test_evaluations_are_marked_and_curves_that_coincide_are_both_seen():
    names = ("eval/strict", "eval/loose", "eval/ood_strict", "reward")
    drawn = panels([{"step": s} | dict.fromkeys(names, 0.1) for s in (0, 5, 10)])
    held_out = drawn["Held out"]["curves"]
    assert [len(curve["marks"]) for curve in held_out] == [3] * 3
    assert held_out[0]["dash"] == "" and len({curve["dash"] for curve in held_out}) == 3
    assert drawn["Reward"]["curves"][0]["marks"] == []


def test_shares_are_per_cent_as_in_the_texts_and_other_numbers_are_not():
    names = ("eval/strict", "completions/no_answer_ratio", "reward")
    names += ("rewards/correct/mean", "rewards/format/mean")
    drawn = panels([{"step": s} | dict.fromkeys(names, 0.1 * s) for s in range(3)])
    for title in ("Held out", "Shares", "Parts of the reward"):
        assert drawn[title]["high"] == "20%" and drawn[title]["curves"][0]["last"] == "20.0%"
    assert drawn["Reward"]["high"] == "0.2"
    rows = [{"step": s, "rewards/correct/mean": 0.1, "rewards/user/mean": 41.0} for s in range(3)]
    assert panels(rows)["Parts of the reward"]["high"] == "41"  # not all of them are shares


def test_two_runs_share_an_axis_and_differ_in_colour():
    a = [{"step": s, "reward": 1.0} for s in range(3)]
    b = [{"step": s, "reward": 3.0, "kl": 1.0} for s in range(6)]
    reward, kl = panels(a, b).values()
    assert [curve["label"] for curve in reward["curves"]] == ["a: reward", "b: reward"]
    assert len({curve["colour"] for curve in reward["curves"]}) == 2 and reward["last_step"] == 5
    assert kl["curves"][0]["colour"] == reward["curves"][1]["colour"]


def test_time_memory_and_speed_are_drawn_from_zero():
    names = ("entropy", "tokens_per_second", "seconds/eval", "memory_gb")
    rows = [{"step": s} | dict.fromkeys(names, 1.0 + 0.01 * s) for s in range(9)]
    assert [panel["low"] for panel in panels(rows).values()] == ["1", "0", "0", "0"]


def test_legend_labels_are_readable():
    names = [
        "frac_reward_zero_std",
        "grad_norm",
        "eval/mAP",
        "eval/loose",
        "eval/ood_mAP",
        "rewards/iou/mean",
    ]
    names += [
        "rewards/format/mean",
        "rewards/iou/std",
        "completions/min_length",
        "seconds/rollout",
        "seconds/report",
    ]
    drawn = panels([{"step": 1} | dict.fromkeys(names, 0.5)], headline="mAP")
    assert [curve["label"] for panel in drawn.values() for curve in panel["curves"]] == [
        *("iou", "format", "mAP", "mAP, out of distribution", "min"),
        *("zero-std groups", "norm before clipping", "rollout"),
    ]
    numbers = (999.7, 999_700, 1.2e9, 0, 0.97312, -0.0001)
    texts = ["1,000", "999,700", "1.2e+09", "0", "0.973", "-1.0e-04"]
    assert [curves.short(number) for number in numbers] == texts


def test_panels_that_say_nothing_are_left_out():
    """The only part of a reward, which is the reward; shares of answers that nobody can read."""
    shares = ("eval/top_answer_share", "eval/top_target_share")
    for answer, parts in ((0.0, ("user",)), (0.2, ("correct", "format"))):
        rows = [{"step": s, "reward": 1.0, shares[0]: answer, shares[1]: 0.2} for s in range(3)]
        drawn = panels([row | {f"rewards/{part}/mean": 0.5 for part in parts} for row in rows])
        is_shown = len(parts) > 1
        assert ("Parts of the reward" in drawn) == ("Most frequent answer" in drawn) == is_shown


def test_an_axis_ends_at_what_is_drawn():
    """Of four noisy curves the single steps are not drawn: a peak of one step is no reason."""
    names = [f"completions/{name}_ratio" for name in ("clipped", "no_answer", "no_reward")]
    names.append("frac_reward_zero_std")
    rows = [{"step": s} | dict.fromkeys(names, float(s == 10) * 0.5) for s in range(1, 21)]
    assert panels(rows)["Shares"]["high"] == "10%"  # 0.5 in one of five steps


def test_a_panel_of_one_evaluation_has_one_label_on_its_axis():
    panel = panels([{"step": 0, "eval/strict": 0.5}])["Held out"]
    assert panel["first_step"] == panel["last_step"] == 0
