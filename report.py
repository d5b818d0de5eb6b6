"""report.html: what a run learnt, in one file that needs no network and no JavaScript.

    python report.py runs/a              # writes runs/a/report.html once more
    python report.py runs/a runs/b       # both runs side by side, in runs/a/compare.html

Training writes the page of its run at every evaluation. The page holds a verdict with traffic
lights, the curves, the rollout gallery, and how to repeat the run; it is read from the run's
directory alone. Everything a model or a data set said is escaped, and a content security policy
forbids scripts. At most `MAX_BYTES`: if need be, snapshots between the first and the last are
left out.
Read first: reporting/__init__.py.
"""

import sys
from dataclasses import MISSING, fields
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

import config
from config import Config, SftConfig
from model.errors import InputError
from reporting import curves
from reporting.rollouts import Pictures, questions_shown, shown_steps, views_shown
from reporting.saved import Run, read_run, shortened
from tasks.files import write_whole

MAX_BYTES = 5_000_000


def _settings(runs: list[Run]) -> list[tuple[str, list[str], bool]]:
    """(name, value in each run, is it worth a look): all of one run, the differing ones of more."""
    kinds = (*fields(Config), *fields(SftConfig))
    defaults = {f.name: f.default for f in kinds if f.default is not MISSING}
    made = []
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        values = [run.settings.get(name, "-") for run in runs]
        if len(runs) == 1:
            made.append(
                (name, list(map(shortened, values)), str(defaults.get(name)) != str(values[0]))
            )
        elif len(set(map(str, values))) > 1 and name != "output_dir":
            made.append((name, list(map(shortened, values)), False))
    return made


def page(runs: list[Run]) -> str:
    """The whole page as text."""
    for number, run in enumerate(runs):
        run.colour = curves.COLOURS[number % len(curves.COLOURS)]
    drawn = curves.panels([(run.label, run.headline, run.rows) for run in runs])
    curve_bytes = sum(len(c.raw) + len(c.smooth) + 300 for p in drawn for c in p.curves)
    budget = (MAX_BYTES - 150_000 - curve_bytes) // len(runs)
    steps, said = zip(*(shown_steps(run, budget) for run in runs), strict=True)
    pictures = Pictures()
    questions = questions_shown(runs, pictures, list(steps))
    views = views_shown(runs[0], pictures, steps[0]) if len(runs) == 1 else []
    groups = questions + [group for *_, own in views for group in own]
    completions = [c for group in groups for _, own in group.columns for c in own]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html").render(
        title=" and ".join(run.label for run in runs),
        runs=runs,
        panels=drawn,
        questions=questions,
        views=views,
        settings=_settings(runs),
        pictures=list(pictures.by_key.values()),
        has_boxes=any(group.boxes is not None for group in groups),
        has_heat=any(completion["heat"] for completion in completions),
        left_out=" ".join(filter(None, said)),
        width=curves.WIDTH,
        height=curves.HEIGHT,
        left=curves.LEFT,
        right=curves.RIGHT,
        top=curves.TOP,
        bottom=curves.BOTTOM,
    )


def write_report(directory: Path) -> Path:
    """Write `directory`/report.html; whoever reads it meanwhile sees the old or the new page."""
    path = Path(directory) / "report.html"
    write_whole(path, page([read_run(directory)]))
    return path


def try_report(directory: Path) -> Path | None:
    """`write_report` for a run that must not end because of it: None, and one line, on failure."""
    try:
        return write_report(directory)
    except (OSError, InputError, TemplateError) as error:
        print(f"report: not written ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        return None


def main(argv: list[str] | None = None) -> None:
    parser = config.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--output", type=Path, help="default: report.html or compare.html there")
    args = parser.parse_args(argv)
    runs = [read_run(directory) for directory in args.runs]
    name = "report.html" if len(runs) == 1 else "compare.html"
    output = args.output or args.runs[0] / name
    try:
        write_whole(output, page(runs))
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error})") from None
    print(output)


if __name__ == "__main__":
    config.run(main)
