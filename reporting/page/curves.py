"""The geometry of the curves: metrics in, points for the page's inline SVG out.

One panel has one axis and a few metrics. A dash is a metric, so that curves that coincide are both
seen; a colour is a metric, or with several runs a run. Noisy curves are drawn as the mean of their
last tenth, which is what the traffic lights read, and the number in the legend is where the curve
ends. Where a panel has three curves at most, the logged values are drawn faintly too.
"""

import math
import re

from reporting.verdict import MIN_TAIL, short, tail_length

WIDTH, HEIGHT = 320, 130
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 18  # margins
MAX_CURVES = 12  # of a run in one panel
MAX_POINTS = 400  # of a curve, over all runs: more cannot be seen, and the page stays small
MAX_MARKS = 60  # evaluations of a curve that are marked each by a dot
PLAIN = ("memory_gb", "seconds/eval", "eval/")  # not noisy: drawn as logged
# Where noise would look dramatic if the axis did not begin at zero.
FROM_ZERO = ("memory_gb", "seconds/", "tokens_per_second", "sampling/")
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#b8860b", "#d44c47")
DASHES = ("", "5 3", "2 2", "8 2 2 2")

# Shares, in per cent as in the texts of the page.
SHARES = r"eval/.*|frac_.*|completions/.*_ratio|clip_ratio/.*"
SHARES += "|(rewards|task)/(correct|iou|confidence|format)/mean"

# Title -> metrics with their labels. A metric is a regular expression; its group is the label.
PANELS: dict[str, dict[str, str]] = {
    "Reward": {"reward": "reward"},
    "Parts of the reward": {"rewards/(.*)/mean": ""},
    "Held out": {
        "eval/HEADLINE": "HEADLINE",
        "eval/loose": "loose",
        "eval/ood_HEADLINE": "HEADLINE, out of distribution",
    },
    "The task's own reward, not paid": {"task/(.*)/mean": ""},
    "Most frequent answer, held out": {
        "eval/top_answer_share": "its share of the answers",
        "eval/top_target_share": "most frequent target's share",
    },
    "Loss": {"loss": "loss"},
    "Completion length, tokens": {"completions/(.*)_length": ""},
    "Shares": {
        "frac_reward_zero_std": "zero-std groups",
        "completions/clipped_ratio": "truncated completions",
        "completions/no_answer_ratio": "unreadable answers",
        "eval/no_answer_ratio": "unreadable answers, held out",
        "completions/no_reward_ratio": "completions without a reward",
    },
    "Entropy, nats per token": {"entropy": "entropy"},
    "KL to the start, nats per token": {"kl": "kl"},
    "Clipped tokens, by bound": {"clip_ratio/(.*)_mean": ""},
    "Gradient norm": {"grad_norm": "norm before clipping"},
    "Sampler against trainer, nats": {"sampling/sampling_logp_difference/mean": "mean difference"},
}
# Folded away on the page.
SPEED_PANELS: dict[str, dict[str, str]] = {
    "Tokens per second": {"tokens_per_second": "tokens per second"},
    "Seconds per phase of a step": {"seconds/(prompts|rollout|reward|update)": ""},
    "Seconds per evaluation": {"seconds/eval": "seconds"},
    "Peak memory, GB": {"memory_gb": "GB"},
}


def percent(value: float) -> str:
    """A share as the verdict and the lights write it."""
    return f"{value:.1%}"


def panels(
    runs: list[tuple[str, str, list[dict]]], chosen: dict[str, dict[str, str]] = PANELS
) -> list[dict]:
    """The chosen panels that have something to show. runs: (label, headline metric, rows)."""
    shown = []
    for title, metrics in chosen.items():
        curves = []
        for r, (run, headline, rows) in enumerate(runs):
            for m, (metric, label) in enumerate(_logged(rows, metrics, headline)):
                drawable = (row for row in rows if abs(row.get(metric, math.inf)) < 1e300)
                points = [(row["step"], row[metric]) for row in drawable]
                label, colour, dash = (label, m, m) if len(runs) == 1 else (f"{run}: {label}", r, m)
                colour, dash = COLOURS[colour % len(COLOURS)], DASHES[dash % len(DASHES)]
                curve = {"metric": metric, "label": label, "colour": colour, "dash": dash}
                curves += [curve | {"points": points}] if points else []
        if curves:
            shown.append(_panel(title, curves, len(runs)))
    return shown


def _logged(rows: list[dict], metrics: dict[str, str], headline: str) -> list[tuple[str, str]]:
    """(metric, label) of a panel's metrics that were logged."""
    names, logged = dict.fromkeys(name for row in rows for name in row), []
    for metric, label in metrics.items():
        pattern = metric.replace("HEADLINE", re.escape(headline))
        label = label.replace("HEADLINE", headline)
        matches = filter(None, (re.fullmatch(pattern, name) for name in names))
        logged += [(match[0], (match.groups() or [label])[0][:60]) for match in matches]
    return logged[:MAX_CURVES]


def _panel(title: str, curves: list[dict], n_runs: int) -> dict:
    """A panel for the template: its axes, and `curves` with "raw" and "smooth" as SVG points."""
    steps, values = zip(*(point for curve in curves for point in curve["points"]), strict=True)
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    has_zero = any(curve["metric"].startswith(FROM_ZERO) for curve in curves)
    if low >= 0 and (has_zero or low < 0.5 * high):  # what comes near zero is seen best from zero
        low = 0.0
    if high - low < 1e-12:  # a flat line
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    x_scale = (WIDTH - LEFT - RIGHT) / max(1, last - first)
    y_scale = (HEIGHT - TOP - BOTTOM) / (high - low)

    is_share = all(re.fullmatch(SHARES, curve["metric"]) for curve in curves)
    text = percent if is_share else short
    for curve in curves:
        points = curve.pop("points")
        every = math.ceil(len(points) * n_runs / MAX_POINTS)
        places = range(len(points))[::-1][::every][::-1]  # thinned out evenly, the last one is kept

        def svg(width: int, points=points, places=places) -> list[str]:
            """Points of a polyline, each the mean of the last `width` values."""
            pairs = [(points[i][0], _mean(points[max(0, i + 1 - width) : i + 1])) for i in places]
            drawn = [(LEFT + x_scale * (x - first), TOP + y_scale * (high - y)) for x, y in pairs]
            return [f"{x:.1f},{y:.1f}" for x, y in drawn]

        is_noisy = len(points) > MIN_TAIL and not curve["metric"].startswith(PLAIN)
        width = tail_length(len(points)) if is_noisy else 1
        curve |= {"last": text(_mean(points[-width:])), "smooth": " ".join(svg(width))}
        curve["raw"] = " ".join(svg(1)) if is_noisy and len(curves) <= 3 else ""
        is_marked = curve["metric"].startswith("eval/") and len(places) <= MAX_MARKS
        curve["marks"] = [point.split(",") for point in svg(1)] if is_marked else []
    axis = [text(value).replace(".0%", "%") for value in (low, high)]
    panel = {"title": title, "curves": curves, "low": axis[0], "high": axis[1]}
    return panel | {"first_step": int(first), "last_step": int(last)}


def _mean(points: list[tuple[float, float]]) -> float:
    return sum(value / len(points) for _, value in points)  # divided first: no overflow
