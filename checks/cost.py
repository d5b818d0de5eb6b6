"""What a run would cost, from a few of its own steps: seconds by phase, hours, money.

Next: checks/page.py.
"""

from dataclasses import dataclass
from statistics import median

from config import TrainConfig
from training.memory_plan import GIB, Plan

BETWEEN = ("eval", "report")  # phases that are no part of a step


@dataclass(frozen=True)
class Cost:
    """Seconds of a run. `phases`: of a step, by name; the others: of each, and how often it comes.

    memory: GiB in use at most while the steps were timed.
    """

    phases: dict[str, float]
    steps: int
    evaluation: float
    evaluations: int
    save: float
    saves: int
    begin: float  # until the first step
    memory: float

    @property
    def step(self) -> float:
        """Of one step."""
        return sum(self.phases.values())

    @property
    def total(self) -> float:
        """Of the whole run."""
        each = self.steps * self.step + self.evaluations * self.evaluation
        return self.begin + each + self.saves * self.save


def cost_of(rows: list[dict], cfg: TrainConfig, begin: float, seconds: float) -> Cost:
    """From the rows of a short run (metrics.jsonl) to the whole one.

    Args:
        begin: seconds until the short run's first evaluation. seconds: that it took in all, with
            one checkpoint at its end.
    Notes: the first step is left out, it warms up; so is the first evaluation where there are two.
    """
    steps = [row for row in rows if "step_time" in row]
    timed = steps[1:] or steps
    names = [key for key in timed[-1] if key.startswith("seconds/")]
    names = [key for key in names if key.removeprefix("seconds/") not in BETWEEN]
    phases = {k.removeprefix("seconds/"): median(row.get(k, 0.0) for row in timed) for k in names}
    spent = {name: [row.get(f"seconds/{name}", 0.0) for row in rows] for name in BETWEEN}
    evaluations = [value for value in spent["eval"] if value] or [0.0]
    known = begin + sum(row["step_time"] for row in steps) + sum(map(sum, spent.values()))
    every, saved = cfg.eval_steps, cfg.steps_between_saves
    return Cost(
        phases=phases,
        steps=cfg.max_steps,
        evaluation=evaluations[-1] + max(spent["report"], default=0.0),
        evaluations=1 + -(-cfg.max_steps // every),
        save=max(0.0, seconds - known),
        saves=-(-cfg.max_steps // saved) if saved else 1,
        begin=begin,
        memory=max(row["memory_gb"] for row in steps),
    )


def duration(seconds: float) -> str:
    """In words: 48 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def in_two_lines(cost: Cost, plan: Plan | None, advice: str, cfg: TrainConfig) -> list[str]:
    """Time and memory for the console."""
    phases = ", ".join(f"{name} {seconds:.2g}" for name, seconds in cost.phases.items())
    price = getattr(cfg, "price_per_hour", None)
    money = "" if price is None else f", {price * cost.total / 3600:.2f} at {price:g} an hour"
    lines = [
        f"time: {duration(cost.total)} for {cost.steps} steps of {cost.step:.2g} s ({phases}), "
        f"{cost.evaluations} evaluations of {duration(cost.evaluation)}{money}"
    ]
    memory = f"memory: {cost.memory:.1f} GiB measured here"
    if plan is not None:
        memory += f"; on a GPU {plan.peak / GIB:.1f} GiB, computed, most in the {plan.largest}"
    return [*lines, f"{memory}; {advice}" if advice else memory]
