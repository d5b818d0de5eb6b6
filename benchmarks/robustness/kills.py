"""Kill a short run at random moments, resume it, and compare with one that nobody disturbed.

    python -m benchmarks.robustness.kills --kills 200

A moment is a phase of training (rollout, backward, optimizer, log, evaluation, save, swap, prune),
one of its calls, and a delay within it. The process is killed there with SIGKILL and resumed, often
to be killed again, until it is through. Then everything that a run leaves has to be the same bit
for bit: weights, AdamW's masters and moments, every completion, every metric but the timings.
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
from training import checkpoint, optimizer, run

FLAGS = "--task count --max_steps 6 --eval_steps 3 --save_steps 1 --save_total_limit 3"
FLAGS += " --train_size 16 --held_out_size 4 --prompts_per_step 2 --num_generations 4"
FLAGS += " --max_completion_length 16 --learning_rate 1e-4"
PHASES = {  # name -> (where it is looked up, as what, longest delay in seconds)
    "rollout": (train_grpo, "generate_group", 0.05),
    "backward": (train_grpo, "accumulate_gradient", 0.05),
    "optimizer": (optimizer.Optimizer, "step", 0.02),
    "log": (RunLog, "append", 0.002),
    "evaluation": (run, "held_out_metrics", 0.2),
    "save": (run, "save_checkpoint", 0.3),
    "swap": (checkpoint, "_swap", 0.003),
    "prune": (checkpoint, "_prune", 0.01),
}
TIMINGS = ("seconds/", "step_time", "tokens_per_second", "memory_gb")


def in_child(act: Callable[[], None]) -> int:
    """Run in a forked process, quietly; returns its exit code, negative for a signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code, said = 1, io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                act()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            if code:
                os.write(2, said.getvalue().encode()[-2000:])
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killing(phase: str, call: int, delay: float, argv: list[str]) -> None:
    """Train, and die `delay` seconds into the `call`-th call of a phase."""
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


def resumable(directory: Path) -> bool:
    try:
        checkpoint.find_checkpoint(directory)
        return True
    except checkpoint.InputError:
        return False


def differences(straight: Path, resumed: Path) -> list[str]:
    """The files of two runs that are not the same."""
    found = []
    names = ["completions.jsonl", "gallery.jsonl"]
    for step in (4, 5, 6):
        names += [f"step_{step}/hf/model.safetensors"]
        names += [f"step_{step}/trainer/optimizer.safetensors"] if step < 6 else []
    for name in names:
        if (straight / name).read_bytes() != (resumed / name).read_bytes():
            found.append(name)
    if metrics(straight) != metrics(resumed):
        found.append("metrics.jsonl")
    return found


def metrics(directory: Path) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(TIMINGS)} for line in lines
    ]


def main() -> None:
    parser = config.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, killed, unhurt, runs, anew = random.Random(args.seed), Counter(), 0, 0, 0
    started, wrong = time.time(), []
    with tempfile.TemporaryDirectory() as work:
        straight = Path(work) / "straight"
        words = FLAGS.split()
        code = in_child(lambda: train_grpo.main([*words, "--output_dir", str(straight)]))
        if code != 0:
            raise SystemExit("the undisturbed run failed")
        while killed.total() < args.kills:
            runs += 1
            out = Path(work) / "killed"
            shutil.rmtree(out, ignore_errors=True)
            code = -signal.SIGKILL
            while code != 0:
                goes_on = resumable(out)
                if out.exists() and not goes_on:  # killed before its first checkpoint
                    anew += 1
                    shutil.rmtree(out)
                argv = ["--resume_from_checkpoint", str(out)] if goes_on else words
                argv = [*argv, "--output_dir", str(out)]
                phase, call = rng.choice(list(PHASES)), rng.randint(1, 4)
                delay = rng.uniform(0, PHASES[phase][2])
                if killed.total() == args.kills:
                    call = 0  # enough: let it end
                code = in_child(lambda p=phase, c=call, d=delay, a=argv: killing(p, c, d, a))
                if code == -signal.SIGKILL:
                    killed[phase] += 1
                elif code != 0:
                    wrong.append(f"run {runs}: {phase} {call} {delay:.4f}: exit {code}")
                    break
                else:
                    unhurt += call > 0
            if code == 0 and (found := differences(straight, out)):
                wrong.append(f"run {runs}: {', '.join(found)} differ")
            print(f"{killed.total()} kills, {runs} runs, {len(wrong)} wrong", file=sys.stderr)
    print(f"{machine()}; {time.time() - started:.0f} s; seed {args.seed}; {FLAGS}")
    print("killed in: " + ", ".join(f"{phase} {killed[phase]}" for phase in PHASES))
    print("\n".join(wrong) or f"{runs} runs, each the same bit for bit as the undisturbed one")
    report = {"kills": killed.total(), "runs": runs, "wrong": wrong, "started_anew": anew}
    print(json.dumps(report | {"phases": dict(killed), "ended_before_the_kill": unhurt}))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
