"""report.html: what a run learnt, in one file that needs no network and no JavaScript.

    python report.py runs/a              # writes runs/a/report.html again
    python report.py runs/a runs/b       # both runs side by side, in runs/a/compare.html

Training writes the page of its run at every evaluation: a verdict with traffic lights, the curves,
completions with their rewards, and how to repeat the run. Next: reporting/page/render.py.
"""

from pathlib import Path

import config
from reporting.page.render import page
from reporting.page.saved_run import read_run
from runtime import console
from runtime.errors import InputError, one_line
from runtime.run_directory import write_atomically


def main(argv: list[str] | None = None) -> None:
    parser = config.Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--output", type=Path, help="default: report.html or compare.html there")
    args = parser.parse_args(argv)
    name = "report.html" if len(args.runs) == 1 else "compare.html"
    output = args.output or args.runs[0] / name
    if output.exists() and output.suffix != ".html":
        raise InputError(f"--output {output}: exists and is no page; name a .html file")
    runs = [read_run(directory) for directory in args.runs]
    try:
        text = page(runs)
    except Exception as error:  # files from outside: anything may be wrong with them
        what = one_line(error)
        places = ", ".join(dict.fromkeys(map(str, args.runs)))
        raise InputError(f"{places}: metrics, gallery or run.json is damaged ({what})") from error
    try:
        write_atomically(output, text)
    except (OSError, ValueError) as error:
        raise InputError(f"--output {output}: cannot be written ({error})") from None
    print(output)


if __name__ == "__main__":
    console.run(main)
