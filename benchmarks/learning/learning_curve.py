"""The README's two pictures of a run: how accuracy rises, paid strictly or loosely; its report.

    python -m benchmarks.learning.learning_curve    # needs matplotlib, and chromium for the report

Runs the first command with evaluations every ten steps, three seeds, once with the task's own
reward and once with the field's loose rule (benchmarks/learning/loose_rewards.py), and draws the
held-out accuracy of each by the strict and by the loose metric. The other picture is a screenshot
of the report.html of the first command itself.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.learning.runs import evaluations, train
from benchmarks.timing import ROOT, machine

REWARDS = {
    "paid for the whole name": [],
    "paid by the loose rule": ["--reward", "benchmarks/learning/loose_rewards.py:name"],
}
SCREEN = (1300, 2030)  # pixels of the report that are shown
WIDTH = 900  # of the picture in the README


def draw(curves: dict[str, list[list[dict]]], path: Path) -> None:
    """Mean and range over seeds of strict and loose accuracy: reward -> evaluations per seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), dpi=130, layout="tight")
    axes = figure.subplots()
    for (label, runs), colour in zip(curves.items(), ("#0b6e99", "#d9730d"), strict=True):
        steps = [row["step"] for row in runs[0]]
        for metric, style in (("strict", "-"), ("loose", ":")):
            values = [[100 * row[f"eval/{metric}"] for row in rows] for rows in runs]
            by_step = list(zip(*values, strict=True))
            text = f"{label}: {metric} accuracy"
            axes.plot(steps, list(map(statistics.mean, by_step)), style, color=colour, label=text)
            low, high = list(map(min, by_step)), list(map(max, by_step))
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="step", ylabel="held-out accuracy, %", ylim=(0, 103), xlim=(0, max(steps)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center right")
    figure.savefig(path)
    shrink(path)


def screenshot(browser: str, page: Path, path: Path) -> None:
    """The top of the report as a browser shows it."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={SCREEN[0]},{SCREEN[1]}", f"--screenshot={path}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    shrink(path)


def shrink(path: Path) -> None:
    """A palette and at most WIDTH pixels: a README should load at once."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((WIDTH, 10 * WIDTH))
    picture.quantize(224, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--assets", type=Path, default=ROOT / "assets")
    parser.add_argument("flags", nargs="*", help="after --: flags of train_grpo.py")
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("chromium is needed for the picture of the report")
    command, curves = ["--task", "cls", "--shots", "1", *args.flags, "--seed"], {}
    with tempfile.TemporaryDirectory() as work:
        for label, flags in REWARDS.items():
            more, out = ["--eval_steps", "10", *flags], Path(work) / label
            runs = [train(out / str(s), [*command, str(s), *more]) for s in args.seeds]
            ends = [f"{run.final['strict']:.1%} / {run.final['loose']:.1%}" for run in runs]
            print(f"{label}: held out strict / loose at the end: {', '.join(ends)}", flush=True)
            curves[label] = [evaluations(outcome.run) for outcome in runs]
        draw(curves, args.assets / "learning-curve.png")
        out = Path(work) / "cls, one shot"
        train(out, [*command, str(args.seeds[0])])
        screenshot(browser, out / "report.html", args.assets / "report.png")
    print(machine())


if __name__ == "__main__":
    main()
