"""Do the tests see a bug? Each classic one is planted in a copy, and some test has to turn red.

    python -m benchmarks.robustness.mutations                # all of them, minutes
    python -m benchmarks.robustness.mutations --only shift

The bugs are those that reinforcement fine-tuning code has really had: they train, and learn the
wrong thing. Prints a table of bug, file and first red test; exit code 1 if a bug is not seen.
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

import config
from benchmarks.timing import ROOT, Table, machine


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    right: str  # occurs in the file exactly once
    wrong: str
    tests: str  # where the first red test is expected


PLANTED = {  # (file, tests that must see the bugs in it): name, right text, wrong text
    ("train_grpo.py", "tests/test_train_grpo.py tests/robustness/test_oracles.py"): (
        (
            "the loss is a mean per micro-batch",
            "-(weights * objective).sum()",
            "-(weights * objective).sum() / weights.sum()",
        ),
        (
            "gradient of the loss with the wrong sign",
            "-(weights * objective).sum()",
            "(weights * objective).sum()",
        ),
        ("KL estimator with the wrong sign", "logp_ref - logp\n", "logp - logp_ref\n"),
        ("KL term added instead of subtracted", "objective - cfg.beta", "objective + cfg.beta"),
        (
            "the old log-probabilities are the new ones",
            "log_ratio = logp - logp_old",
            "log_ratio = logp - logp",
        ),
    ),
    ("training/objectives.py", "tests/training/test_objectives.py tests/test_train_grpo.py"): (
        ("clip on one side only", "ratio.clamp(low, high)", "ratio.clamp(max=high)"),
        ("the clipped objective takes the larger side", "torch.minimum(", "torch.maximum("),
        ("leave-one-out upside down", "(G / (G - 1))", "((G - 1) / G)"),
        ("the baseline of the step is the median", "[has_reward].mean()", "[has_reward].median()"),
        (
            "a lost reward has an advantage",
            "advantages.masked_fill(~has_reward, 0.0)",
            "advantages",
        ),
        ("the step's deviation is that of the rewards", "(advantages[has_", "(rewards[has_"),
        ("the ratio of a sequence is a sum", "(sums / counts.clamp_min(1))", "sums"),
        ("CISPO's weight has a gradient", "ratio.detach().clamp(max=cap)", "ratio.clamp(max=cap)"),
        ("CISPO's cap is a distance from 1", "clamp(max=cap) *", "clamp(max=1 + cap) *"),
        ("SAPO's gate falls", "torch.sigmoid(t * (ratio - 1))", "torch.sigmoid(t * (1 - ratio))"),
        ("the KL is added to the reward", '"kl", kl, -beta', '"kl", kl, beta'),
    ),
    ("training/critic.py", "tests/training/test_critic.py"): (
        ("GAE looks ahead to the present value", "F.pad(v[:, 1:], (0, 1))", "v"),
        ("lambda is forgotten", "gamma * lam * following", "gamma * following"),
        ("the KL is a bonus", "of_tokens - beta *", "of_tokens + beta *"),
    ),
    ("training/selection.py", "tests/training/test_selection.py"): (
        ("a past group counts as fresh", "group.step == self.step)", "group.step <= self.step)"),
        ("silent groups are kept", "for group in groups if group.speaks)", "for group in groups)"),
        ("past groups never grow old", "<= self.max_age]", "<= 10**9]"),
    ),
    ("training/verifier.py", "tests/training/test_verifier.py"): (
        ("the worse one is preferred", "_loss(first - second", "_loss(second - first"),
        ("a score is read a token early", ".cumsum(0) - 1", ".cumsum(0) - 2"),
    ),
    ("training/process.py", "tests/training/test_process.py"): (
        ("a true statement costs", "statement.is_true is False", "statement.is_true is True"),
        ("an untrue statement earns", "- weight * is_untrue", "+ weight * is_untrue"),
    ),
    ("training/search.py", "tests/training/test_search.py"): (
        ("the worst of n is chosen", "scores[n].argmax()", "scores[n].argmin()"),
    ),
    ("training/batches.py", "tests/test_train_grpo.py"): (
        (
            "advantages repeated in the wrong order",
            "rollout.advantages[n].repeat_interleave(counts)",
            "rollout.advantages[n].repeat(int(counts.sum()))[: int(counts.sum())]",
        ),
    ),
    ("kernels/advantage.py", "tests/kernels/test_advantage.py"): (
        ("population standard deviation", "std(dim=1, keep", "std(dim=1, correction=0, keep"),
    ),
    ("kernels/logprob.py", "tests/kernels/test_logprob.py"): (
        (
            "the trained distribution forgets the temperature",
            "alpha=1.0 / temp",
            "alpha=1.0 or temp",
        ),
    ),
    ("kernels/sample.py", "tests/test_sample.py"): (
        (
            "sampling from a sharpened distribution",
            "uniforms.double() *",
            "uniforms.double() ** 2 *",
        ),
    ),
    ("model/attention.py", "tests/model/test_parity.py"): (
        ("a token sees the one after it", ".tril()[None, None]", ".tril(1)[None, None]"),
    ),
    ("model/pack.py", "tests/acting/test_episodes.py"): (
        ("what is shown begins at position 0", "piece.positions + first", "piece.positions"),
        ("a picture is looked for too early", "begin + s.at", "begin"),
    ),
    ("checks/forecast.py", "tests/checks/test_forecast.py"): (
        (
            "all groups of equal rewards are counted once",
            "alike = sum(comb(c, size) for c in counts.values())",
            "alike = max(comb(c, size) for c in counts.values())",
        ),
    ),
    ("checks/linter.py", "tests/checks/test_linter.py"): (
        (
            "only what is paid like the right answer is a hole",
            "reward > wrong + max(",
            "reward > right + max(",
        ),
    ),
    ("checks/frames.py", "tests/checks/test_forecast.py"): (
        (
            "data are taken to be read in the frame of the model",
            "between(read_as, frame)",
            "between(own, frame)",
        ),
    ),
    ("acting/episodes.py", "tests/acting/test_episodes.py"): (
        (
            "pictures of another shape share what the tower saw",
            "(*piece.grids, piece.pixels.numpy().tobytes())",
            "(piece.pixels.numpy().tobytes(),)",
        ),
    ),
    ("acting/zoom.py", "tests/acting/test_zoom.py"): (
        ("a look earns whatever came of it", "hit and self.is_right(text, example)", "hit"),
    ),
    ("model/pack.py", "tests/model/test_shared_prefix.py tests/test_sample.py"): (
        (
            "next-token shift off by one",
            "arange(span.start - 1, span.stop - 1)",
            "arange(span.start, span.stop)",
        ),
        (
            "positions of a completion begin at the prompt's length",
            "seen, prompt.next_position)",
            "seen, len(prompt.ids))",
        ),
    ),
    ("model/vlm.py", "tests/model/test_shared_prefix.py tests/test_sample.py"): (
        (
            "prompts repeated in the wrong order",
            "hidden[ends].repeat_interleave(group_size, 0)",
            "hidden[ends].repeat(group_size, 1)",
        ),
        ("stale rope offset in decoding", "[p.next_position for", "[p.next_position - 1 for"),
    ),
    ("sample.py", "tests/test_sample.py"): (
        (
            "the end token is not part of the completion",
            "is_end.int().argmax(1) + 1, cut)",
            "is_end.int().argmax(1).clamp(min=1), cut)",
        ),
        (
            "a token after the end is part of the completion",
            "is_end.int().argmax(1) + 1, cut)",
            "(is_end.int().argmax(1) + 2).clamp(max=max_completion_length), cut)",
        ),
        (
            "all completions of a prompt draw the same numbers",
            "first_sample + b % G)",
            "first_sample)",
        ),
    ),
    ("training/optimizer.py", "tests/training/test_resume.py"): (
        ("momentum is lost by a resume", "placed_like(value, m", "placed_like(0 * value, m"),
    ),
    ("training/resume.py", "tests/training/test_resume.py"): (
        ("logs are not cut back by a resume", "os.truncate(path, wanted)\n", "pass\n"),
    ),
    (
        "runtime/distributed.py",
        "tests/training/test_ranks.py::test_two_ranks_make_the_run_of_one[plain]",
    ): (("each rank keeps its own gradient", "dist.all_reduce(parameter.grad)\n", "pass\n"),),
    ("rewards.py", "tests/test_rewards.py"): (
        (
            "the empty answer is a part of every name",
            "parse_name(answer) == target_value(parse_name, target) else 0.0",
            "(parse_name(answer) or '') in target_value(parse_name, target) else 0.0",
        ),
    ),
}
BUGS = tuple(
    Bug(name, file, right, wrong, tests)
    for (file, tests), bugs in PLANTED.items()
    for name, right, wrong in bugs
)


def first_red(bug: Bug, copy: Path) -> str | None:
    """Plant the bug in a copy, run its tests, repair the copy. The name of the first red test."""
    path = copy / bug.file
    source = path.read_text(encoding="utf-8")
    if source.count(bug.right) != 1:
        raise SystemExit(f"{bug.file}: {bug.right!r} occurs {source.count(bug.right)} times")
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
    match = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return match[1] if done.returncode == 1 and match else None


def planted_in_a_copy(bug: Bug) -> str | None:
    """`first_red` in a copy of the project."""
    ignored = (".git", "runs", ".hypothesis", ".pytest_cache")
    with tempfile.TemporaryDirectory() as work:
        copy = shutil.copytree(ROOT, Path(work) / "copy", ignore=shutil.ignore_patterns(*ignored))
        return first_red(bug, copy)


def main() -> None:
    parser = config.Parser(description=__doc__)
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="bugs that are tested at once")
    parser.add_argument("--third", type=int, choices=range(3), help="every third bug, from this")
    args = parser.parse_args()
    bugs, unseen = [bug for bug in BUGS if args.only in bug.name], []
    bugs = bugs if args.third is None else bugs[args.third :: 3]
    table = Table()
    with ThreadPoolExecutor(args.jobs) as workers:
        for bug, test in zip(bugs, workers.map(planted_in_a_copy, bugs), strict=True):
            table.add(bug=bug.name, file=f"`{bug.file}`", first_red_test=test or "**none**")
            unseen += [bug.name] if test is None else []
    print(f"{machine()}; {len(bugs) - len(unseen)} of {len(bugs)} bugs seen")
    print(json.dumps({"bugs": len(bugs), "unseen": unseen}))
    if unseen:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
