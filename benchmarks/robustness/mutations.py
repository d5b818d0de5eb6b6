"""Do the tests see a bug? Each classic one is planted in a copy, and some test has to turn red.

    python -m benchmarks.robustness.mutations                # all of them, minutes
    python -m benchmarks.robustness.mutations --only shift

The bugs are those that reinforcement fine-tuning code has really had: they train, and learn the
wrong thing. Prints a table of bug, place and the first test that sees it; exit code 1 if one lives.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import config
from benchmarks.timing import ROOT, machine


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    right: str  # stands in the file exactly once
    wrong: str
    tests: str  # where the first red test is expected


BUGS = (
    Bug(
        "the trained distribution forgets the temperature",
        "kernels/logprob.py",
        "alpha=1.0 / temperature)  # (C, V)",
        "alpha=1.0)  # (C, V)",
        "tests/kernels/test_logprob.py",
    ),
    Bug(
        "next-token shift off by one",
        "model/vlm.py",
        "predictor = torch.arange(span.start - 1, span.stop - 1)  # (C_i,)",
        "predictor = torch.arange(span.start, span.stop)  # (C_i,)",
        "tests/model/test_shared_prefix.py",
    ),
    Bug(
        "the end token is not part of the completion",
        "sample.py",
        "is_end.int().argmax(1) + 1, cut)",
        "is_end.int().argmax(1).clamp(min=1), cut)",
        "tests/test_sample.py",
    ),
    Bug(
        "a token after the end is part of the completion",
        "sample.py",
        "is_end.int().argmax(1) + 1, cut)",
        "(is_end.int().argmax(1) + 2).clamp(max=max_completion_length), cut)",
        "tests/test_sample.py",
    ),
    Bug(
        "prompts repeated in the wrong order",
        "sample.py",
        "decoder.choose(hidden[ends].repeat_interleave(G, 0))",
        "decoder.choose(hidden[ends].repeat(G, 1))",
        "tests/test_sample.py",
    ),
    Bug(
        "advantages repeated in the wrong order",
        "train_grpo.py",
        "per_token = advantages[n].repeat_interleave(counts)",
        "per_token = advantages[n].repeat(int(counts.sum()))[: int(counts.sum())]",
        "tests/test_train_grpo.py",
    ),
    Bug(
        "population standard deviation",
        "kernels/advantage.py",
        "rewards.std(dim=1, keepdim=True) + eps)",
        "rewards.std(dim=1, keepdim=True, correction=0) + eps)",
        "tests/kernels/test_advantage.py",
    ),
    Bug(
        "the loss is a mean per micro-batch",
        "train_grpo.py",
        "return -(weights * objective).sum(), stats",
        "return -(weights * objective).sum() / weights.sum(), stats",
        "tests/test_train_grpo.py",
    ),
    Bug(
        "KL estimator with the wrong sign",
        "train_grpo.py",
        "difference = logp_ref - logp\n",
        "difference = logp - logp_ref\n",
        "tests/test_train_grpo.py",
    ),
    Bug(
        "KL term added instead of subtracted",
        "train_grpo.py",
        "objective = objective - cfg.beta * kl",
        "objective = objective + cfg.beta * kl",
        "tests/test_train_grpo.py",
    ),
    Bug(
        "clip on one side only",
        "train_grpo.py",
        "ratio.clamp(low, high) * advantages)",
        "ratio.clamp(max=high) * advantages)",
        "tests/test_train_grpo.py",
    ),
    Bug(
        "the clipped objective takes the larger side",
        "train_grpo.py",
        "objective = torch.minimum(",
        "objective = torch.maximum(",
        "tests/test_train_grpo.py",
    ),
    Bug(
        "the old log-probabilities are the new ones",
        "train_grpo.py",
        "ratio = (logp - logp_old).exp()",
        "ratio = (logp - logp).exp()",
        "tests/test_train_grpo.py",
    ),
    Bug(
        "gradient of the loss with the wrong sign",
        "train_grpo.py",
        "return -(weights * objective).sum(), stats",
        "return (weights * objective).sum(), stats",
        "tests/test_train_grpo.py",
    ),
    Bug(
        "positions of a completion begin at the prompt's length",
        "model/vlm.py",
        "first = prompt.next_position",
        "first = len(prompt.ids)",
        "tests/model/test_shared_prefix.py tests/test_sample.py",
    ),
    Bug(
        "stale rope offset in decoding",
        "sample.py",
        "torch.tensor([p.next_position for p in prompts], device=device)",
        "torch.tensor([p.next_position - 1 for p in prompts], device=device)",
        "tests/test_sample.py",
    ),
    Bug(
        "a token sees the one after it",
        "model/attention.py",
        "dtype=torch.bool).tril()[None, None]",
        "dtype=torch.bool).tril(1)[None, None]",
        "tests/model/test_parity.py",
    ),
    Bug(
        "sampling from a sharpened distribution",
        "sample.py",
        "target = uniforms.double() * cumulative[:, -1:]",
        "target = uniforms.double() ** 2 * cumulative[:, -1:]",
        "tests/test_sample.py",
    ),
    Bug(
        "all completions of a prompt draw the same numbers",
        "sample.py",
        "key = (seed, step, prompts[b // G].id, b % G)",
        "key = (seed, step, prompts[b // G].id, 0)",
        "tests/test_sample.py",
    ),
    Bug(
        "momentum is lost by a resume",
        "training/optimizer.py",
        "key: placed_like(own[key], master) for key in moments",
        "key: placed_like(0 * own[key], master) for key in moments",
        "tests/training/test_resume.py",
    ),
    Bug(
        "each rank keeps its own gradient",
        "runtime/distributed.py",
        "            dist.all_reduce(parameter.grad)\n",
        "            pass\n",
        "tests/training/test_ranks.py::test_two_ranks_make_the_run_of_one",
    ),
    Bug(
        "logs are not cut back by a resume",
        "training/checkpoint.py",
        "            os.truncate(path, size)\n",
        "            pass\n",
        "tests/training/test_resume.py",
    ),
    Bug(
        "the empty answer is a part of every name",
        "rewards.py",
        "parse_name(answer) == target_value(parse_name, target) else 0.0",
        "(parse_name(answer) or '') in target_value(parse_name, target) else 0.0",
        "tests/test_rewards.py",
    ),
)


def first_red(bug: Bug, copy: Path) -> str | None:
    """Plant the bug in a copy, run its tests, heal the copy. The name of the first red test."""
    path = copy / bug.file
    source = path.read_text(encoding="utf-8")
    if source.count(bug.right) != 1:
        raise SystemExit(f"{bug.file}: {bug.right!r} stands there {source.count(bug.right)} times")
    path.write_text(source.replace(bug.right, bug.wrong), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *bug.tests.split()],
        cwd=copy,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    path.write_text(source, encoding="utf-8")
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found[1] if done.returncode == 1 and found else None


def in_a_copy(bug: Bug, copies: "Queue[Path]") -> str | None:
    copy = copies.get()
    try:
        return first_red(bug, copy)
    finally:
        copies.put(copy)


def main() -> None:
    parser = config.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    parser.add_argument("--copies", type=int, default=2, help="that are worked on at once")
    args = parser.parse_args()
    bugs, rows = [bug for bug in BUGS if args.only in bug.name], []
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(args.copies) as workers:
        copies: Queue[Path] = Queue()
        for number in range(args.copies):
            copy = Path(work) / f"copy{number}"
            left_out = shutil.ignore_patterns(
                ".git", "runs", ".hypothesis", ".pytest_cache", "__pycache__"
            )
            shutil.copytree(ROOT, copy, ignore=left_out)
            copies.put(copy)
        for bug, test in zip(bugs, workers.map(lambda b: in_a_copy(b, copies), bugs), strict=True):
            rows.append((bug, test))
            print(f"| {bug.name} | `{bug.file}` | {test or '**none**'} |", flush=True)
    lives = [bug.name for bug, test in rows if test is None]
    print(f"{machine()}; {len(rows) - len(lives)} of {len(rows)} bugs seen")
    print(json.dumps({"bugs": len(rows), "unseen": lives}))
    if lives:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
