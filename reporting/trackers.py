"""The metrics of a run once more, for a tracker that the user has: `--report_to NAME`.

metrics.jsonl is the record; a tracker is a mirror of it. So nothing here may end a run or ask a
question: without the library, a login or a network there is one warning, and training continues.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.errors import one_line


def _tensorboard(directory: Path, settings: dict):
    from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

    writer = SummaryWriter(str(directory / "tensorboard"))
    writer.add_text("config", "\n".join(f"    {name}: {v}" for name, v in settings.items()))

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return SimpleNamespace(log=log, finish=writer.close)


def _wandb(directory: Path, settings: dict):
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("offline", "disabled") and not _is_logged_in(wandb):
        mode = "offline"
        print(f"--report_to wandb: no login or no network; offline, in {directory / 'wandb'}")
    place = {"project": "nanovrft", "name": directory.name, "dir": str(directory)}
    return wandb.init(**place, config=settings, mode=mode)


def _is_logged_in(wandb) -> bool:
    try:
        return wandb.login(prompt=False)
    except TypeError:  # a version that would ask: `Tracker` reports it
        raise
    except Exception:  # a wrong key, or no network to try it
        return False


def _trackio(directory: Path, settings: dict):
    import trackio

    trackio.init(project="nanovrft", name=directory.name, config=settings, embed=False)
    return trackio


# --report_to -> what opens it; the result has log(numbers, step=N) and finish().
OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}


class Tracker:
    """`log` and `close`, which never raise: after the first fault nothing is logged any more."""

    def __init__(self, name: str, directory: Path, settings: dict):
        self.name = name
        self.target = None if name == "none" else self._try(OPEN[name], directory, settings)

    def log(self, row: dict[str, float]) -> None:
        """Pass on the numbers of a row."""
        if self.target is not None:
            numbers = {name: value for name, value in row.items() if name != "step"}
            self._try(self.target.log, numbers, step=row["step"])

    def close(self) -> None:
        """Let the tracker finish its upload."""
        if self.target is not None:
            self._try(self.target.finish)

    def _try(self, act: Callable, *arguments, **more) -> Any:
        try:
            return act(*arguments, **more)
        except (Exception, SystemExit) as error:  # foreign code and a network: anything
            self.target = None
            why = one_line(error)
            print(f"--report_to {self.name}: {why}; training continues without it", file=sys.stderr)
