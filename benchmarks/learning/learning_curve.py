"""The README's two pictures of a run: how accuracy rises, paid strictly or loosely; its report.

    python -m benchmarks.learning.learning_curve          # needs matplotlib, and chromium for the report

Runs the first command with evaluations every ten steps, three seeds, once with the task's own
reward and once with the field's loose rule (benchmarks/learning/loose_rewards.py), and draws the held-out
accuracy of each by the strict and by the loose metric. The other picture is a screenshot of the
report.html of the first command itself.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.timing import ROOT, machine
from reporting.page.saved_run import read_run

REWARDS = {
    "paid for the whole name": [],
    "paid by the loose rule": ["--reward", "benchmarks/learning/loose_rewards.py:name"],
}
SCREEN = (1300, 2170)  # pixels of the report that are shown
WIDTH = 900  # of the picture in the README


def run(out: Path, seed: int, flags: list[str]) -> list[dict]:
    """Train once; the rows of its metrics."""
    command = [sys.executable, "train_grpo.py", "--task", "cls", "--shots", "1", *flags]
    command += ["--seed", str(seed), "--output_dir", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return read_run(out).rows


def draw(curves: dict[str, list[list[dict]]], path: Path) -> None:
    """Mean and range over seeds of the held-out accuracy, strict and loose, of each reward."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), dpi=130)
    for (label, runs), colour in zip(curves.items(), ("#0b6e99", "#d9730d"), strict=True):
        judged = [[row for row in rows if "eval/strict" in row] for rows in runs]
        steps = [row["step"] for row in judged[0]]
        for metric, style in (("strict", "-"), ("loose", ":")):
            values = [[100 * row[f"eval/{metric}"] for row in rows] for rows in judged]
            means = [statistics.mean(at) for at in zip(*values, strict=True)]
            shown = f"{label}: {metric} accuracy"
            axes.plot(steps, means, style, color=colour, label=shown)
            low, high = zip(*((min(at), max(at)) for at in zip(*values, strict=True)), strict=True)
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="step", ylabel="held-out accuracy, %", ylim=(0, 103), xlim=(0, max(steps)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(path)
    _shrink(path, Image.open(path))


def photograph(browser: str, page: Path, path: Path) -> None:
    """The top of the report as a browser shows it."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={SCREEN[0]},{SCREEN[1]}", f"--screenshot={path}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    _shrink(path, Image.open(path))


def _shrink(path: Path, picture: Image.Image) -> None:
    """A palette and at most WIDTH pixels: a README should load at once."""
    picture = picture.convert("RGB")
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
    with tempfile.TemporaryDirectory() as work:
        curves = {}
        for number, (label, flags) in enumerate(REWARDS.items()):
            more = ["--eval_steps", "10", *flags, *args.flags]
            runs = [run(Path(work) / f"{number}-{seed}", seed, more) for seed in args.seeds]
            curves[label] = runs
            ends = [
                f"{rows[-1]['eval/strict']:.1%} / {rows[-1]['eval/loose']:.1%}" for rows in runs
            ]
            print(f"{label}: held out strict / loose at the end: {', '.join(ends)}", flush=True)
        draw(curves, args.assets / "learning-curve.png")
        shown = Path(work) / "cls, one shot"
        run(shown, args.seeds[0], args.flags)
        photograph(browser, shown / "report.html", args.assets / "report.png")
    print(machine())


if __name__ == "__main__":
    main()
