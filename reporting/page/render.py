"""The page report.html: data of one or several runs in, HTML out.

It is read from the directories of the runs alone. Everything a model or a data set said is escaped,
and a content security policy forbids scripts. At most `MAX_BYTES`: if need be, snapshots between
the first and the last are left out. Next: reporting/page/page.html.
"""

import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reporting.page import curves
from reporting.page.rollouts import Pictures, questions_shown, views_shown, what_fits
from reporting.page.saved_run import Run, read_run, shortened
from runtime.errors import visible
from runtime.run_directory import write_atomically

MAX_BYTES = 5_000_000
GLOSSARY = {
    "strict": "the whole answer is right",
    "loose": "right by a lenient rule of published code, which is never paid",
    "out of distribution": "harder or new questions, which no step trained on",
    "nats": "logarithms of probabilities; 1 nat is a factor of 2.7",
}
FILLED_IN = ("coords", "max_completion_length", "output_dir")  # by the run itself


def _settings(runs: list[Run]) -> list[tuple[str, list[str], bool]]:
    """(name, value in each run, is it worth a look): all of one run, the differing ones of more."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        values = [str(run.settings.get(name, "-")) for run in runs]
        if len(runs) > 1 and (len(set(values)) == 1 or name == "output_dir"):
            continue
        is_set = len(runs) == 1 and name in runs[0].changed_flags and name not in FILLED_IN
        rows.append((name, [shortened(value) for value in values], is_set))
    return rows


def _glossary(runs: list[Run], drawn: list[curves.Panel]) -> list[tuple[str, str]]:
    """(word, meaning) of the words that stand in the verdicts, the lights or the curves."""
    said = [panel.title for panel in drawn] + [c.label for panel in drawn for c in panel.curves]
    for run in runs:
        said += [run.verdict, *(light.name for light in run.lights)]
    return [(word, meaning) for word, meaning in GLOSSARY.items() if word in " ".join(said)]


def page(runs: list[Run]) -> str:
    """The whole page as text, at most MAX_BYTES in UTF-8."""
    names = [run.label for run in runs]
    for number, run in enumerate(runs):
        run.colour = curves.COLOURS[number % len(curves.COLOURS)]
        if names.count(run.label) > 1:
            run.label = f"{number + 1}: {run.directory.resolve().parent.name}/{run.label}"
    drawn = curves.panels([(run.label, run.headline, run.rows) for run in runs])
    budget = MAX_BYTES
    while True:
        text = _render(runs, drawn, budget // len(runs))
        excess = len(text.encode("utf-8")) - MAX_BYTES
        if excess <= 0 or budget <= 0:
            return text
        budget = min(budget - excess, budget // 2)  # the sizes are estimates


def _render(runs: list[Run], drawn: list[curves.Panel], budget: int) -> str:
    """The page with at most about `budget` bytes of rollouts of each run."""
    pictures, is_single = Pictures(), len(runs) == 1
    shown = [what_fits(run, budget, only_last=not is_single) for run in runs]
    questions = questions_shown(runs, pictures, shown)
    views = views_shown(runs[0], pictures, shown[0]) if is_single else []
    groups = questions + [group for *_, own in views for group in own]
    completions = [c for group in groups for _, own in group.columns + group.between for c in own]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return environment.get_template("page.html").render(
        title=shortened(" and ".join(run.label for run in runs)),
        window_title=shortened(" and ".join(run.brief for run in runs)),
        runs=runs,
        glossary=_glossary(runs, drawn),
        panels=drawn,
        questions=questions,
        views=views,
        settings=_settings(runs),
        pictures=list(pictures.by_key.values()),
        has_boxes=any(group.boxes is not None for group in groups),
        has_heat=any(completion["heat"] for completion in completions),
        left_out=" ".join(own.left_out for own in shown if own.left_out),
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
    write_atomically(path, page([read_run(directory)]))
    return path


def try_report(directory: Path) -> Path | None:
    """`write_report` for a run that must not end because of it: None, and one line, on failure."""
    try:
        return write_report(directory)
    except Exception as error:  # whatever it is: the run is worth more than its page
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"report: not written ({what})", file=sys.stderr)
        return None
