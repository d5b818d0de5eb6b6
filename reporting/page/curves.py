"""The geometry of the curves: metrics in, points for the page's inline SVG out.

One panel has one axis and a few metrics. A dash is a metric, so that curves that coincide are both
seen; a colour is a metric, or with several runs a run. Noisy curves are drawn as the mean of their
last tenth, which is what the traffic lights read, and the number in the legend is where the curve
ends. Where a panel has three curves at most, the logged values are drawn faintly too.
"""

import math
import re
from collections.abc import Callable

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
        if curves and not _says_nothing(title, curves):
            shown.append(_panel(title, curves, len(runs)))
    return shown


def _logged(rows: list[dict], metrics: dict[str, str], headline: str) -> list[tuple[str, str]]:
    """(metric, label) of a panel's metrics that were logged."""
    names, logged = dict.fromkeys(name for row in rows for name in row), []
    for metric, label in metrics.items():
        if metric == "eval/loose" and headline != "strict":  # no looser form of that
            continue
        pattern = metric.replace("HEADLINE", re.escape(headline))
        label = label.replace("HEADLINE", headline)
        matches = filter(None, (re.fullmatch(pattern, name) for name in names))
        logged += [(match[0], (match.groups() or [label])[0][:60]) for match in matches]
    return logged[:MAX_CURVES]


def _says_nothing(title: str, curves: list[dict]) -> bool:
    """One part that is the whole reward; shares of answers where none can be read."""
    if title == "Parts of the reward":
        return len({curve["metric"] for curve in curves}) < 2
    answers = (c["points"] for c in curves if c["metric"] == "eval/top_answer_share")
    is_answered = any(value for points in answers for _, value in points)
    return title.startswith("Most frequent answer") and not is_answered


def _panel(title: str, curves: list[dict], n_runs: int) -> dict:
    """A panel for the template: its axes, and `curves` with "raw" and "smooth" as SVG points."""
    is_share = all(re.fullmatch(SHARES, curve["metric"]) for curve in curves)
    text = percent if is_share else short
    steps = [step for curve in curves for step, _ in curve["points"]]
    for curve in curves:
        _smooth(curve, n_runs, has_raw=len(curves) <= 3, text=text)
    first, last = min(steps), max(steps)
    low, high = _limits(curves)
    x_scale = (WIDTH - LEFT - RIGHT) / max(1, last - first)
    y_scale = (HEIGHT - TOP - BOTTOM) / (high - low)
    for curve in curves:
        for kind in ("smooth", "raw", "marks"):
            drawn = [
                (LEFT + x_scale * (x - first), TOP + y_scale * (high - y)) for x, y in curve[kind]
            ]
            drawn = [f"{x:.1f},{y:.1f}" for x, y in drawn]
            curve[kind] = [p.split(",") for p in drawn] if kind == "marks" else " ".join(drawn)
    axis = [text(value).replace(".0%", "%") for value in (low, high)]
    panel = {"title": title, "curves": curves, "low": axis[0], "high": axis[1]}
    return panel | {"first_step": int(first), "last_step": int(last), "x_scale": x_scale}


def _smooth(curve: dict, n_runs: int, has_raw: bool, text: Callable[[float], str]) -> None:
    """Replace a curve's "points" by those that are drawn: "smooth", and maybe "raw" and "marks"."""
    points = curve.pop("points")
    every = math.ceil(len(points) * n_runs / MAX_POINTS)
    places = range(len(points))[::-1][::every][::-1]  # thinned out evenly, the last one is kept
    is_noisy = len(points) > MIN_TAIL and not curve["metric"].startswith(PLAIN)
    width = tail_length(len(points)) if is_noisy else 1
    raw = [points[i] for i in places]
    smooth = [(points[i][0], _mean(points[max(0, i + 1 - width) : i + 1])) for i in places]
    is_marked = curve["metric"].startswith("eval/") and len(places) <= MAX_MARKS
    curve |= {"last": text(smooth[-1][1]), "smooth": smooth, "marks": raw if is_marked else []}
    curve["raw"] = raw if is_noisy and has_raw else []


def _limits(curves: list[dict]) -> tuple[float, float]:
    """Where the y axis begins and ends: at what is drawn, or at zero where that comes near it."""
    values = [value for c in curves for kind in ("smooth", "raw") for _, value in c[kind]]
    low, high = min(values), max(values)
    has_zero = any(curve["metric"].startswith(FROM_ZERO) for curve in curves)
    if low >= 0 and (has_zero or low < 0.5 * high):
        low = 0.0
    if high - low < 1e-12:  # a flat line
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    return low, high


def _mean(points: list[tuple[float, float]]) -> float:
    return sum(value / len(points) for _, value in points)  # divided first: no overflow
