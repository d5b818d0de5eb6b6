"""The page report.html: data of one or several runs in, HTML out.

It is read from the directories of the runs alone. All text of a model or a data set is escaped, and
a content security policy forbids scripts. The page has at most `MAX_BYTES`: rollouts are left out
where there are too many (reporting/page/rollouts.py:LIMITS). Next: reporting/page/page.html.
"""

import re
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from reporting.lights import FAULTS
from reporting.page import curves
from reporting.page.glossary import glossary
from reporting.page.rollouts import LIMITS, Limits, held_out_groups, snapshots, training_groups
from reporting.page.saved_run import Run, read_run
from reporting.verdict import column
from runtime.errors import one_line, visible
from runtime.run_directory import write_atomically
from tasks import TASKS, reads
from tasks.loose import RULES

MAX_BYTES = 5_000_000
SPLITS = {"train": "training", "held_out": "held-out", "ood": "out-of-distribution", "val": "val"}
MAX_CHARS = 2000  # of a question, a target, a setting, ...


def page(runs: list[Run]) -> str:
    """The whole page as text, at most MAX_BYTES in UTF-8."""
    names = [run.label for run in runs]
    for number, run in enumerate(runs, start=1):
        if names.count(run.label) > 1:
            run.label = f"{number}: {run.directory.resolve().parent.name}/{run.label}"
    if len(runs) > 1:  # side by side: only how each of them ended
        runs = [replace(run, gallery=snapshots(run, "held_out", 1)) for run in runs]
    measured = [(run.label, run.headline, run.rows) for run in runs]
    panels = [curves.panels(measured, which) for which in (curves.PANELS, curves.SPEED_PANELS)]
    for limits in LIMITS:
        text = _render(runs, panels, limits)
        if len(text.encode("utf-8")) <= MAX_BYTES:
            break
    return text


def template(path: Path) -> Template:
    """A page of the project: all text is escaped, and macros.html is at hand."""
    folders = {path.parent, Path(__file__).parent}
    more = dict(autoescape=True, undefined=StrictUndefined, finalize=printed)
    return Environment(loader=FileSystemLoader(folders), **more).get_template(path.name)


def _render(runs: list[Run], panels: list[list[dict]], limits: Limits) -> str:
    questions, views = held_out_groups(runs, limits), training_groups(runs[0], limits)
    groups = questions + [group for *_, view_groups in views for group in view_groups]
    pictures = {
        picture.key: picture
        for group in groups
        for picture in (*group["pictures"], *group["shown"])
    }
    return template(Path(__file__).with_name("page.html")).render(
        runs=runs,
        panels=panels[0],
        speed_panels=panels[1],
        axes=curves,
        questions=questions,
        views=views,
        limits=limits,
        reads=reads,
        task_name=task_name,
        model_name=_model_name,
        splits=SPLITS,
        settings=_settings(runs),
        when=_when,
        algorithm=_algorithm,
        loose_rules=RULES,
        fault_names=FAULTS,
        words_of_page=glossary(_words_of(runs, panels), runs[0].settings["task"]),
        looks=_looks(runs[0]) if len(runs) == 1 else [],
        pictures=[picture for picture in pictures.values() if picture.uri],
    )


def _looks(run: Run) -> list[tuple[str, str, str]]:
    """Of zoom: (kind of question, how many looked, how many are right), first and last evaluation.

    [] for other tasks.
    """
    names = {"needs_look": "needs a look", "at_sight": "can be told at first sight"}

    def change(key: str) -> str:
        values = column(run.rows, key)
        return f"{values[0]:.1%} -> {values[-1]:.1%}"

    return [
        (words, change(f"eval/{name}/looked"), change(f"eval/{name}/strict"))
        for name, words in names.items()
        if column(run.rows, f"eval/{name}/strict") and column(run.rows, f"eval/{name}/looked")
    ]


def _words_of(runs: list[Run], panels: list[list[dict]]) -> str:
    """The texts of a page that the glossary is about."""
    titles = [(p["title"], [c["label"] for c in p["curves"]]) for group in panels for p in group]
    texts = [run.verdict + run.beside + run.formula + str(run.lights) for run in runs]
    texts += ["held-out strict greedy sparse"]  # of the captions
    texts += ["coords" for run in runs if run.settings.get("coords") == "norm1000"]
    texts += [_algorithm(run) for run in runs]
    return f"{titles} {texts}"


def _algorithm(run: Run) -> str:
    """What the script of a run is called; runs of before scripts were noted are GRPO's."""
    names = {"train_sft.py": "supervised fine-tuning", "train_ppo.py": "PPO"}
    return names.get(run.settings.get("script"), "GRPO")


def _when(time: object) -> str:
    """A time in ISO format as people write it, in UTC; any other text as it is."""
    try:
        return f"{datetime.fromisoformat(str(time)).astimezone(UTC):%d %b %Y %H:%M} UTC"
    except (ValueError, OverflowError):
        return str(time)


def task_name(task: str) -> str:
    """The field's name of a task: how its file begins."""
    described = TASKS[task].__doc__ if task in TASKS else None  # None with python -OO, too
    return re.split("[:,.]", described or task)[0]


def _model_name(model: str) -> str:
    """The last part of its path; of a checkpoint RUN/step_N/hf, which run's it is."""
    parts = model.rstrip("/").split("/")
    return "/".join(parts[-3:] if parts[-1] == "hf" else parts[-1:])


def printed(value: object) -> object:
    """What the template prints of a value: not too long, and no character that cannot be seen."""
    if type(value) in (Markup, int, float):
        return value
    text = str(value)
    return visible(text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} …")


def _settings(runs: list[Run]) -> list[tuple[str, list[str], bool]]:
    """(name, value in each run, is it bold): all of one run, the differing ones of several."""
    rows, about = [], runs[0].about
    changed = set(about.get("changed_flags", [])) - {"coords", "output_dir"}  # every run sets these
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        values = [str(run.settings.get(name, "-")) for run in runs]
        if len(runs) > 1 and (len(set(values)) == 1 or name == "output_dir"):
            continue
        rows.append((name, values, len(runs) == 1 and name in changed))
    return rows


def try_report(directory: Path) -> Path | None:
    """Write `directory`/report.html; on failure print one line and return None."""
    try:
        write_atomically(directory / "report.html", page([read_run(directory)]))
        return directory / "report.html"
    except Exception as error:  # whatever it is: the run is worth more than its page
        print(f"report: not written ({one_line(error)})", file=sys.stderr)
        return None
