"""The metrics of a run once more, for a tracker that the user has: `--report_to NAME`.

metrics.jsonl is the record; a tracker is a mirror of it. So nothing here may end a run or ask a
question: without the library, a login or a network there is one warning, and training goes on.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

Log = Callable[[dict[str, float], int], None]  # numbers, step


def tensorboard(directory: Path, settings: dict) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

    writer = SummaryWriter(str(directory / "tensorboard"))
    writer.add_text("config", "\n".join(f"    {name}: {v}" for name, v in settings.items()))

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


def wandb(directory: Path, settings: dict) -> tuple[Log, Callable[[], None]]:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("offline", "disabled") and not _is_logged_in(wandb):
        mode = "offline"
        print(f"--report_to wandb: no login or no network; kept in {directory / 'wandb'}")
    run = wandb.init(
        project="nanovrft", name=directory.name, dir=str(directory), config=settings, mode=mode
    )
    return lambda numbers, step: run.log(numbers, step=step), run.finish


def _is_logged_in(wandb) -> bool:
    try:
        return wandb.login(prompt=False)
    except TypeError:  # a version that would ask: `Tracker` says so
        raise
    except Exception:  # a key that is wrong, or no network to try it
        return False


def trackio(directory: Path, settings: dict) -> tuple[Log, Callable[[], None]]:
    import trackio

    trackio.init(project="nanovrft", name=directory.name, config=settings, embed=False)
    return lambda numbers, step: trackio.log(numbers, step=step), trackio.finish


TRACKERS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


class Tracker:
    """`log` and `close`, which never raise: after the first fault it is silent."""

    def __init__(self, name: str, directory: Path, settings: dict):
        self.name, self._log, self._close = name, None, None
        if name != "none":
            self._try(lambda: self._open(directory, settings))

    def log(self, row: dict[str, float]) -> None:
        if self._log is not None:
            numbers = {k: v for k, v in row.items() if k != "step"}
            self._try(lambda: self._log(numbers, row["step"]))

    def close(self) -> None:
        if self._close is not None:
            self._try(self._close)

    def _open(self, directory: Path, settings: dict) -> None:
        self._log, self._close = TRACKERS[self.name](directory, settings)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:  # code from outside, and a network: anything
            self._log = self._close = None
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"--report_to {self.name}: {what}; training goes on without it", file=sys.stderr)
