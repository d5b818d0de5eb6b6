"""Kill a short run at random moments, resume it, and compare with one that nobody disturbed.

    python -m benchmarks.robustness.kills --kills 200

A moment is a phase of training (rollout, backward, optimizer, log, evaluation, save, swap, prune),
one of its calls, and a delay within it. The process is killed there with SIGKILL and resumed, often
to be killed again, until it ends by itself. Then everything that a run leaves has to be the same
bit for bit: weights, AdamW's masters and moments, every completion, every metric but the timings.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import config
import train_grpo
from benchmarks.timing import machine
from reporting.run_log import RunLog
from runtime.run_directory import saved_steps
from training import checkpoint, run
from training.checkpoint import why_unusable
from training.optimizer import Optimizer

FLAGS = "--task count --max_steps 6 --eval_steps 3 --save_steps 1 --save_total_limit 3"
FLAGS += " --train_size 16 --held_out_size 4 --prompts_per_step 2 --num_generations 4"
FLAGS += " --max_completion_length 16 --learning_rate 1e-4"
PHASES = {  # name -> (where it is looked up, under which name, longest delay in seconds)
    "rollout": (train_grpo, "sample_groups", 0.05),
    "backward": (train_grpo, "policy_loss", 0.05),
    "optimizer": (Optimizer, "step", 0.02),
    "log": (RunLog, "append", 0.002),
    "evaluation": (run, "held_out_metrics", 0.2),
    "save": (run, "save_checkpoint", 0.3),
    "swap": (checkpoint.os, "replace", 0.003),
    "prune": (checkpoint, "saved_steps", 0.01),
}
TIMINGS = ("seconds/", "step_time", "tokens_per_second", "memory_gb")


def in_child(act: Callable[[], None]) -> int:
    """Run in a forked process, quietly; returns its exit code, negative for a signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code, output = 1, io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                act()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            if code:
                os.write(2, output.getvalue().encode()[-2000:])
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train_and_die(phase: str, call: int, delay: float, argv: list[str]) -> None:
    """Train, and die `delay` seconds into the `call`-th call of a phase; call 0: never."""
    place, name, _ = PHASES[phase]
    original, calls = getattr(place, name), 0

    def watched(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(*args, **kwargs)

    setattr(place, name, watched)
    train_grpo.main(argv)


def differences(straight: Path, resumed: Path) -> list[str]:
    """The files of two runs that are not the same."""
    names = ["completions.jsonl", "gallery.jsonl"]
    names += [f"step_{step}/hf/model.safetensors" for step in (4, 5, 6)]
    names += [f"step_{step}/trainer/optimizer.safetensors" for step in (4, 5, 6)]
    different = [n for n in names if (straight / n).read_bytes() != (resumed / n).read_bytes()]
    return different + (["metrics.jsonl"] if metrics(straight) != metrics(resumed) else [])


def metrics(directory: Path) -> list[dict]:
    """The rows of metrics.jsonl, steps and evaluations, without the timings."""
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows]


def main() -> None:
    parser = config.Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, kills, unhurt, runs, anew = random.Random(args.seed), Counter(), 0, 0, 0
    start, wrong, words = time.time(), [], FLAGS.split()
    with tempfile.TemporaryDirectory() as work:
        straight, out = Path(work) / "straight", Path(work) / "killed"
        if in_child(lambda: train_grpo.main([*words, "--output_dir", str(straight)])) != 0:
            raise SystemExit("the undisturbed run failed")
        while kills.total() < args.kills:
            runs += 1
            shutil.rmtree(out, ignore_errors=True)
            code = -signal.SIGKILL
            while code == -signal.SIGKILL:
                can_resume = any(why_unusable(path) is None for path in saved_steps(out))
                if out.exists() and not can_resume:  # killed before its first checkpoint
                    anew += 1
                    shutil.rmtree(out)
                argv = ["--resume_from_checkpoint", str(out)] if can_resume else words
                argv = [*argv, "--output_dir", str(out)]
                phase, call = rng.choice(list(PHASES)), rng.randint(1, 4)
                delay = rng.uniform(0, PHASES[phase][2])
                if kills.total() == args.kills:
                    call = 0  # enough: let it end
                moment = phase, call, delay, argv
                code = in_child(lambda moment=moment: train_and_die(*moment))
                kills[phase] += code == -signal.SIGKILL
                unhurt += code == 0 and call > 0
            if code != 0:
                wrong.append(f"run {runs}: {phase} {call} {delay:.4f}: exit {code}")
            elif different := differences(straight, out):
                wrong.append(f"run {runs}: {', '.join(different)} differ")
            print(f"{kills.total()} kills, {runs} runs, {len(wrong)} wrong", file=sys.stderr)
    print(f"{machine()}; {time.time() - start:.0f} s; seed {args.seed}; {FLAGS}")
    print("\n".join(wrong) or f"{runs} runs, each the same bit for bit as the undisturbed one")
    results = {"kills": kills.total(), "runs": runs, "wrong": wrong, "started_anew": anew}
    print(json.dumps(results | {"phases": dict(kills), "ended_before_the_kill": unhurt}))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
