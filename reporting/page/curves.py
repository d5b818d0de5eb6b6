"""The geometry of the curves: metrics in, points for the page's inline SVG out.

One panel has one axis and a few metrics. With several runs a colour is a run and a dash a metric;
with a single run a colour is a metric. Noisy curves are smoothed; up to three of a panel also
stand there faintly as logged.
"""

import math
from dataclasses import dataclass

WIDTH, HEIGHT = 320, 130
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 18  # margins
MAX_CURVES = 12  # of a run in one panel
MAX_POINTS = 400  # per curve: more cannot be seen, and the page stays small
SMOOTHING = 0.1  # weight of the newest value in the running mean
PLAIN = ("memory_gb", "seconds/eval", "eval/")  # not noisy: drawn as logged
# Where noise would look dramatic if the axis did not begin at zero.
FROM_ZERO = ("memory_gb", "seconds/", "tokens_per_second", "sampling/")
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#b8860b", "#d44c47")
DASHES = ("", "5 3", "2 2", "8 2 2 2")

# Title -> metrics; a name that ends in "/" stands for all metrics that begin with it.
PANELS: dict[str, tuple[str, ...]] = {
    "Reward": ("reward",),
    "Parts of the reward": ("rewards/",),
    "Held out": ("eval/HEADLINE", "eval/loose", "eval/ood_HEADLINE"),
    "Loss": ("loss",),
    "Completion length, tokens": (
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
    ),
    "Shares": (
        "frac_reward_zero_std",
        "completions/clipped_ratio",
        "completions/no_answer_ratio",
    ),
    "Entropy, nats per token": ("entropy",),
    "KL to the start, nats per token": ("kl",),
    "Clipped tokens": ("clip_ratio/low_mean", "clip_ratio/high_mean"),
    "Gradient norm": ("grad_norm",),
    "Sampler against trainer, nats": ("sampling/sampling_logp_difference/mean",),
    "Tokens per second": ("tokens_per_second",),
    "Seconds per phase of a step": (
        "seconds/prompts",
        "seconds/rollout",
        "seconds/reward",
        "seconds/update",
    ),
    "Seconds per evaluation": ("seconds/eval",),
    "Memory at most, GB": ("memory_gb",),
}

# What the legends say where the metric's own name would be a riddle.
NAMES: dict[str, str] = {
    "frac_reward_zero_std": "groups without spread",
    "completions/clipped_ratio": "answers cut off",
    "completions/no_answer_ratio": "answers that cannot be read",
    "completions/min_length": "shortest",
    "completions/mean_length": "mean",
    "completions/max_length": "longest",
    "clip_ratio/low_mean": "at the lower bound",
    "clip_ratio/high_mean": "at the upper bound",
    "sampling/sampling_logp_difference/mean": "mean difference",
    "grad_norm": "norm before clipping",
    "seconds/eval": "seconds",
    "memory_gb": "GB",
}


@dataclass(frozen=True)
class Curve:
    label: str
    colour: str
    dash: str
    raw: str  # SVG points "x,y x,y"; empty where the smooth curve says it all
    smooth: str
    last: str  # the last value, in words


@dataclass(frozen=True)
class Panel:
    title: str
    curves: list[Curve]
    low: str  # labels of the axes
    high: str
    first_step: int
    last_step: int


def short(value: float) -> str:
    """Three digits that a reader can compare: 0.973, 12.3, 11.2k, 1.2e-06."""
    value = float(f"{value:.3g}")  # rounded first: 999.7 is 1k
    size = abs(value)
    if value == 0 or 0.001 <= size < 1000:
        return f"{value:.3g}"
    if 1000 <= size < 1e6:
        return f"{value / 1000:.3g}k"
    return f"{value:.1e}"


def panels(runs: list[tuple[str, str, list[dict]]]) -> list[Panel]:
    """All panels that have something to show. runs: (label, headline metric, rows)."""
    made = []
    for title, wanted in PANELS.items():
        series = []
        for r, (label, headline, rows) in enumerate(runs):
            for m, metric in enumerate(_metrics(rows, wanted, headline)):
                points = [(row["step"], row[metric]) for row in rows if _is_number(row, metric)]
                if points:
                    shown = _label(metric)
                    full = shown if len(runs) == 1 else f"{label}: {shown}"
                    series.append((r, m, full, points, metric))
        if series:
            made.append(_panel(title, series, len(runs) > 1))
    return made


def _metrics(rows: list[dict], wanted: tuple[str, ...], headline: str) -> list[str]:
    logged = dict.fromkeys(name for row in rows for name in row)
    found = []
    for name in wanted:
        name = name.replace("HEADLINE", headline)
        if name.endswith("/"):
            found += [n for n in logged if n.startswith(name) and not n.endswith("/std")]
        elif name in logged:
            found.append(name)
    return list(dict.fromkeys(found))[:MAX_CURVES]


def _is_number(row: dict, metric: str) -> bool:
    value = row.get(metric)
    return isinstance(value, int | float) and abs(value) < 1e300


def _label(metric: str) -> str:
    if metric in NAMES:
        return NAMES[metric]
    if metric.startswith("eval/ood_"):
        return f"{_label(metric.removeprefix('eval/ood_'))}, out of distribution"
    name = metric.removesuffix("/mean").removesuffix("_mean").split("/")[-1]
    return name.replace("_", " ")[:60]


def _panel(title: str, series: list, by_run: bool) -> Panel:
    """series: (number of the run, number of the metric, label, points, metric) of each curve."""
    steps = [x for *_, points, _ in series for x, _ in points]
    values = [y for *_, points, _ in series for _, y in points]
    low, high = min(values), max(values)
    has_zero = any(metric.startswith(FROM_ZERO) for *_, metric in series)
    if low >= 0 and (has_zero or low < 0.5 * high):  # what comes near zero is seen best from zero
        low = 0.0
    if high - low < 1e-12:  # a flat line
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    span = (min(steps), max(max(steps), min(steps) + 1), low, high)
    curves = []
    for r, m, label, points, metric in series:
        is_noisy = not metric.startswith(PLAIN)
        colour, dash = (r, DASHES[m % len(DASHES)]) if by_run else (m, "")
        smooth = _smoothed(points) if is_noisy and len(points) > 20 else points
        raw = _svg(points, span) if smooth is not points and len(series) <= 3 else ""
        colour = COLOURS[colour % len(COLOURS)]
        curves.append(Curve(label, colour, dash, raw, _svg(smooth, span), short(points[-1][1])))
    return Panel(title, curves, short(low), short(high), int(span[0]), int(max(steps)))


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    mean, smooth = points[0][1], []
    for step, value in points:
        mean += SMOOTHING * (value - mean)
        smooth.append((step, mean))
    return smooth


def _svg(points: list[tuple[float, float]], span: tuple[float, float, float, float]) -> str:
    """Points of an SVG polyline, thinned out evenly; the last one is always there."""
    first, last, low, high = span
    every = math.ceil(len(points) / MAX_POINTS)
    kept = points[::-1][::every][::-1]
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return " ".join(
        f"{LEFT + inner_width * (x - first) / (last - first):.1f},"
        f"{TOP + inner_height * (1 - (y - low) / (high - low)):.1f}"
        for x, y in kept
    )
