"""preflight.html: what the console says, with the questions, the counts and the attacks behind it.

One self-contained page in the style of report.html; all text is escaped, and a content security
policy forbids scripts. Next: checks/preflight.html.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from checks.cost import Cost, Memory, duration
from checks.forecast import Sampled
from checks.survey import Survey
from checks.verdict import Findings, Verdict
from config import TrainConfig
from data.examples import Example
from data.examples import Picture as Source
from reporting.gallery import answered_boxes, digest, small_jpeg
from reporting.page.render import task_name, template
from reporting.page.rollouts import Picture, embedded
from runtime.errors import InputError
from runtime.run_directory import write_atomically
from training.memory_plan import GIB

TITLES = {  # of what stands beside the verdict
    "blind": "Without looking",
    "holes": "The reward under attack",
    "constant": "A constant answer",
    "fails_on": "Texts without a reward",
    "near": "Held-out pictures",
    "unreadable": "Answers",
}
SHOWN = 24  # questions, with their pictures
LABELS = 20  # the most frequent ones
SIDE = 192  # pixels of the longer side of a picture
EACH = 4  # completions of a question


def thumbnail(source: Source) -> Picture:
    """A small copy of a picture."""
    encoded = small_jpeg(source, SIDE)
    return embedded(digest(encoded), encoded)


def question(example: Example, completions: list[tuple[str, bool, float | None]]) -> dict:
    """A question as the page shows it; completions: (text, is right, reward)."""
    frequent = Counter(completions).most_common(EACH)
    return {
        "id": example.id,
        "question": example.question,
        "target": example.target,
        "pictures": [thumbnail(image) for image in example.images],
        "boxes": answered_boxes(f"<answer>{example.target}</answer>", example) or [],
        "completions": [(*completion, count) for completion, count in frequent],
        "right": sum(is_right for _, is_right, _ in completions),
        "samples": len(completions),
    }


def questions(real: Sampled) -> list[dict]:
    """The first of the sampled questions, with their most frequent completions."""
    K, found = real.right.shape[1], []
    for n, example in enumerate(real.examples[:SHOWN]):
        texts, right = real.texts[n * K : (n + 1) * K], real.right[n].tolist()
        paid = zip(real.rewards[n].tolist(), real.has_reward[n].tolist(), strict=True)
        rewards = [round(reward, 3) if counted else None for reward, counted in paid]
        found.append(question(example, list(zip(texts, right, rewards, strict=True))))
    return found


@dataclass(frozen=True)
class Checked:
    """A run before it begins, and all that was found.

    Attributes:
        cfg: the flags. command: that would start the run. lines: printed while the data were read.
        cost: or why it is not known.
    """

    cfg: TrainConfig
    command: str
    lines: list[str]
    found: Findings
    data: Survey
    sampled: Sampled
    verdicts: list[Verdict]
    cost: Cost | str
    memory: Memory


def page(checked: Checked) -> str:
    """The whole page as text."""
    shown, found, cfg = questions(checked.sampled), checked.found, checked.cfg
    pictures = {p.key: p for item in shown for p in item["pictures"]}
    return template(Path(__file__).with_name("preflight.html")).render(
        command=checked.command,
        task=cfg.task,
        task_name=task_name(cfg.task),
        titles=TITLES,
        lines=checked.lines,
        verdicts=checked.verdicts,
        forecast=found.forecast,
        blind=found.blind,
        honest=found.attacked.honest,
        overlap=found.overlap,
        attacked=found.attacked,
        holes=found.attacked.holes,
        data=checked.data,
        labels=checked.data.labels[:LABELS],
        labelled=sum(count for _, count in checked.data.labels),
        questions=shown,
        pictures=list(pictures.values()),
        cost=checked.cost,
        memory=checked.memory,
        plan=checked.memory.plan,
        gib=GIB,
        duration=duration,
        cfg=cfg,
    )


def write_page(checked: Checked) -> None:
    """Write it to --output. Raises InputError where that fails."""
    path = checked.cfg.output
    try:
        write_atomically(path, page(checked))
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error})") from None
