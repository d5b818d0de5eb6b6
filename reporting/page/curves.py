"""The geometry of the curves: metrics in, points for the page's inline SVG out.

One panel has one axis and a few metrics. With several runs a colour is a run and a dash a metric;
with a single run a colour is a metric. Noisy curves are smoothed; where a panel has three at most,
the logged values are drawn faintly too.
"""

import math
import re
from itertools import accumulate

WIDTH, HEIGHT = 320, 130
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 18  # margins
MAX_CURVES = 12  # of a run in one panel
MAX_POINTS = 400  # of a curve, over all runs: more cannot be seen, and the page stays small
SMOOTHING = 0.1  # weight of the newest value in the running mean
PLAIN = ("memory_gb", "seconds/eval", "eval/")  # not noisy: drawn as logged
# Where noise would look dramatic if the axis did not begin at zero.
FROM_ZERO = ("memory_gb", "seconds/", "tokens_per_second", "sampling/")
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#b8860b", "#d44c47")
DASHES = ("", "5 3", "2 2", "8 2 2 2")

# Title -> metrics with their labels. A metric is a regular expression; its group is the label.
PANELS: dict[str, dict[str, str]] = {
    "Reward": {"reward": "reward"},
    "Parts of the reward": {"rewards/(.*)/mean": ""},
    "Held out": {
        "eval/HEADLINE": "HEADLINE",
        "eval/loose": "loose",
        "eval/ood_HEADLINE": "HEADLINE, out of distribution",
    },
    "Loss": {"loss": "loss"},
    "Completion length, tokens": {"completions/(.*)_length": ""},
    "Shares": {
        "frac_reward_zero_std": "zero-std groups",
        "completions/clipped_ratio": "truncated completions",
        "completions/no_answer_ratio": "unparsable answers",
    },
    "Entropy, nats per token": {"entropy": "entropy"},
    "KL to the start, nats per token": {"kl": "kl"},
    "Clipped tokens, by bound": {"clip_ratio/(.*)_mean": ""},
    "Gradient norm": {"grad_norm": "norm before clipping"},
    "Sampler against trainer, nats": {"sampling/sampling_logp_difference/mean": "mean difference"},
    "Tokens per second": {"tokens_per_second": "tokens per second"},
    "Seconds per phase of a step": {"seconds/(prompts|rollout|reward|update)": ""},
    "Seconds per evaluation": {"seconds/eval": "seconds"},
    "Peak memory, GB": {"memory_gb": "GB"},
}


def short(value: float) -> str:
    """A number for a label: 0.973, 12.3, 11,234, 1.2e-06."""
    size = abs(value)
    if 999.5 <= size < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}" if 0.001 <= size < 1e6 or size == 0 else f"{value:.1e}"


def panels(runs: list[tuple[str, str, list[dict]]]) -> list[dict]:
    """All panels that have something to show. runs: (label, headline metric, rows)."""
    shown = []
    for title, metrics in PANELS.items():
        curves = []
        for r, (run, headline, rows) in enumerate(runs):
            for m, (metric, label) in enumerate(_logged(rows, metrics, headline)):
                drawable = (row for row in rows if abs(row.get(metric, math.inf)) < 1e300)
                points = [(row["step"], row[metric]) for row in drawable]
                label, colour, dash = (label, m, 0) if len(runs) == 1 else (f"{run}: {label}", r, m)
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

    def svg(points: list[tuple[float, float]]) -> str:
        """Points of a polyline, thinned out evenly; the last one is always there."""
        every = math.ceil(len(points) * n_runs / MAX_POINTS)
        thinned = points[::-1][::every][::-1]
        pairs = [(LEFT + x_scale * (x - first), TOP + y_scale * (high - y)) for x, y in thinned]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)

    for curve in curves:
        points = curve.pop("points")
        curve |= {"last": short(points[-1][1]), "raw": ""}
        if len(points) > 20 and not curve["metric"].startswith(PLAIN):
            curve["raw"] = svg(points) if len(curves) <= 3 else ""
            steps, values = zip(*points, strict=True)
            means = accumulate(values, lambda mean, value: mean + SMOOTHING * (value - mean))
            points = list(zip(steps, means, strict=True))
        curve["smooth"] = svg(points)
    panel = {"title": title, "curves": curves, "low": short(low), "high": short(high)}
    return panel | {"first_step": int(first), "last_step": int(last)}
