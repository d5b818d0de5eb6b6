"""Two ranks make the run that one rank makes, and none of them outlives another one's failure.

Real processes, started by torchrun, with gloo on CPUs. The runs to compare are made in one launch.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train_grpo
import train_sft
from config import BASE_MODEL
from model.processor import Processor
from model.weights import load_model
from runtime import distributed
from runtime.errors import InputError
from runtime.signals import signals
from tasks import load_task
from train_grpo import GRPOConfig
from training import fsdp

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
# Three questions a step: shares of one and of two. 5e-6: where a gradient is next to zero, AdamW
# makes a whole step of what is left of it after rounding.
SHORT = f"--task count --max_steps {STEPS} --eval_steps {STEPS} --save_steps 1 --train_size 8"
SHORT += " --held_out_size 5 --prompts_per_step 3 --num_generations 4 --max_completion_length 16"
SHORT += " --learning_rate 5e-6 --report_prompts 1 --device cpu"
HARD = "--beta 0.04 --num_iterations 2 --no-freeze_vision --groups_per_micro_batch 1"
HARD += " --loss_type grpo"
SFT = "--max_steps 3 --eval_steps 3 --save_steps 1 --train_size 8 --held_out_size 5"
SFT = f"--task count --cot {SFT} --prompts_per_step 3 --learning_rate 5e-6 --device cpu"
RUNS = {  # name -> (script, flags of all, flags of two ranks)
    "plain": ("train_grpo", SHORT, ""),
    "sharded": ("train_grpo", SHORT, "--fsdp"),
    "hard": ("train_grpo", f"{SHORT} {HARD}", ""),
    "hard, sharded": ("train_grpo", f"{SHORT} {HARD} --gradient_checkpointing", "--fsdp"),
    "one rank without spread": ("train_grpo", f"{SHORT} --train_size 3 --reward REWARD", ""),
    "the same, sharded": ("train_grpo", f"{SHORT} --train_size 3 --reward REWARD", "--fsdp"),
    "sft": ("train_sft", SFT, ""),
    "sft, sharded": ("train_sft", f"{SFT} --groups_per_micro_batch 1", "--fsdp"),
    "bfloat16, sharded": ("train_grpo", f"{SHORT} --dtype bfloat16", "--fsdp"),
}
ALL_RUNS = """
import json, sys
import evaluate, train_grpo, train_sft
from runtime import distributed
scripts = {"train_grpo": train_grpo, "train_sft": train_sft, "evaluate": evaluate}
if __name__ == "__main__":  # workers of --reward import this file, too
    with distributed.processes():
        for script, argv in json.loads(open(sys.argv[1]).read()):
            scripts[script].main(argv)
"""


def torchrun(program: str, argv: list[str], folder: Path, **more) -> subprocess.Popen:
    """Two ranks that run a program; its text is written to `folder`."""
    file = folder / "program.py"
    file.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{program}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(file), *argv],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """one/NAME and two/NAME: every run by one rank and by two, and evaluations."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    reward = folder / "reward.py"
    cfg = GRPOConfig(task="count", train_size=3)
    paid = load_task(cfg, Processor(BASE_MODEL)).train[0].id
    reward.write_text(
        "def paid(completions, example):\n"
        f"    return [len(c) % 7 * (example.id == {paid!r}) for c in completions]\n"
    )
    jobs = []
    for name, (script, flags, more) in RUNS.items():
        flags = flags.replace("REWARD", f"{reward}:paid").split()
        jobs.append((script, [*flags, *more.split(), "--output_dir", str(folder / "two" / name)]))
        scripts = {"train_grpo": train_grpo, "train_sft": train_sft}
        scripts[script].main([*flags, "--output_dir", str(folder / "one" / name)])
    asked = "--task count --held_out_size 7 --device cpu --batch_size 3 --output".split()
    evaluate.main([*asked, str(folder / "one" / "answers.jsonl")])
    jobs.append(("evaluate", [*asked, str(folder / "two" / "answers.jsonl")]))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    ranks = torchrun(ALL_RUNS, [str(folder / "jobs.json")], folder)
    out, err = ranks.communicate(timeout=300)
    assert ranks.returncode == 0, err[-4000:]
    (folder / "said").write_text(out)
    return folder


def weights(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run / f"step_{step}" / "hf" / "model.safetensors")


def assert_equal_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    differences = torch.cat([(ours[k] - theirs[k]).abs().flatten() for k in ours])
    assert float(differences.max()) <= 1e-6
    assert float(differences.mean()) <= 1e-9  # where they have moved by 1e-5


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.case("O6")
@pytest.mark.parametrize("name", [name for name in RUNS if "bfloat16" not in name])
def test_two_ranks_make_the_run_of_one(made, name):
    one, two = made / "one" / name, made / "two" / name
    moved = weights(one)
    start = load_file(BASE_MODEL / "model.safetensors")
    assert any(not torch.equal(moved[k], start[k].float()) for k in moved)
    assert_equal_weights(one, two)
    for ours, theirs in zip(rows(one), rows(two), strict=True):
        assert ours.keys() == {key for key in theirs if not key.startswith("waiting/")}
        for key in ours.keys() - {"step_time", "memory_gb", "tokens_per_second"}:
            if not key.startswith(("seconds/", "sampling/")):
                assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-6), key


@pytest.mark.case("O6", "O16")
@pytest.mark.parametrize("name", [name for name in RUNS if "sft" not in name and "16" not in name])
def test_the_same_seed_draws_the_same_completions_in_the_same_order(made, name):
    one, two = (made / side / name / "completions.jsonl" for side in ("one", "two"))
    for ours, theirs in zip(one.open(), two.open(), strict=True):
        ours, theirs = json.loads(ours), json.loads(theirs)
        assert theirs.pop("advantage") == pytest.approx(ours.pop("advantage"), abs=1e-4)
        parts, own = theirs.pop("parts"), ours.pop("parts")
        assert parts == pytest.approx(own) and ours == theirs


@pytest.mark.case("O6")
def test_a_rank_without_spread_was_there(made):
    steps = rows(made / "two" / "one rank without spread")[1:]
    zero = [row["frac_reward_zero_std"] for row in steps]
    assert zero == pytest.approx([2 / 3] * STEPS)  # one question of three, so one rank of two


def test_bfloat16_shards_move_as_one_rank_does(made):
    """Rounding differs with the shapes, so directions are compared."""
    start = load_file(BASE_MODEL / "model.safetensors")
    kept = [
        load_file(made / side / "bfloat16, sharded" / "step_2/trainer/optimizer.safetensors")
        for side in ("one", "two")
    ]
    assert kept[0].keys() == kept[1].keys()
    name = "model.layers.0.mlp.up_proj.weight"
    before = start[name].bfloat16().float()
    moves = [own[f"master/{name}"] - before for own in kept]
    assert all(move.abs().max() > 0 for move in moves)
    assert torch.cosine_similarity(*(move.flatten() for move in moves), dim=0) > 0.9
    published = [weights(made / side / "bfloat16, sharded")[name] for side in ("one", "two")]
    assert published[0].dtype == published[1].dtype == start[name].dtype
    assert torch.allclose(*(own.float() for own in published), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("name", ["plain", "sharded", "hard, sharded"])
def test_a_checkpoint_does_not_know_how_many_ranks_wrote_it(made, name, tmp_path):
    kept = [
        load_file(made / side / name / "step_2" / "trainer" / "optimizer.safetensors")
        for side in ("one", "two")
    ]
    assert {k: v.shape for k, v in kept[0].items()} == {k: v.shape for k, v in kept[1].items()}
    # begun by two, ended by one
    run = tmp_path / "run"
    shutil.copytree(made / "two" / name, run)
    shutil.rmtree(run / f"step_{STEPS}")
    train_grpo.main(["--resume_from_checkpoint", str(run), "--no-fsdp"])
    assert_equal_weights(run, made / "one" / name)
    assert len(rows(run)) == STEPS + 1


def test_evaluation_is_shared_and_its_result_is_that_of_one(made):
    one, two = ((made / side / "answers.jsonl").read_text() for side in ("one", "two"))
    assert one == two and one.count("\n") == 14  # held out and out of distribution
    said = (made / "said").read_text()
    assert said.count("count held_out, 7 questions") == 1  # by rank 0 alone


def test_ranks_leave_one_run_behind(made):
    for run in (made / "two").iterdir():
        if run.is_dir():
            assert (run / "report.html").is_file()
            assert not list(run.glob(".*unfinished")) and len(rows(run)) == STEPS + 1


# ---- failures ------------------------------------------------------------------------------------

FAULT = """
import json, os, signal, sys, time
import train_grpo
from training import scoring
from runtime import console
import evaluate
from model import language
from torch.distributed.fsdp import FSDPModule
from reporting.gallery import Gallery
kind, where = sys.argv.pop(1).split(" in ")
def fault():
    print("fault at", time.time(), file=sys.stderr, flush=True)
    if kind == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop": os.kill(os.getpid(), signal.SIGTERM)
    if kind == "stop twice": [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]
    if kind == "slow": time.sleep(8)
    if kind == "error": raise ValueError("planted")
def watch(place, name, call, rank="1"):
    original, calls = getattr(place, name), [0]
    def watched(*args, **kwargs):
        calls[0] += 1
        if os.environ["RANK"] == rank and calls[0] == call: fault()
        return original(*args, **kwargs)
    setattr(place, name, watched)
    return calls
if where == "forward":  # the other rank is in the middle of it when it hears of the error
    calls, through = watch(train_grpo, "generate_group", 3), language.MLP.forward
    language.MLP.forward = lambda mlp, x: time.sleep(calls[0] // 3) or through(mlp, x)
if where == "unshard": watch(FSDPModule, "unshard", 28)  # before step 3
if where == "update": watch(train_grpo, "grpo_loss", 3)
if where == "rollout": watch(train_grpo, "generate_group", 3)
if where == "reward": watch(scoring.Scorer, "score_step", 3)
if where == "last gallery": watch(Gallery, "held_out", 2, "0")  # of rank 0 alone
console.run(train_grpo.main)
"""


def failing(kind: str, folder: Path, more: str = "") -> tuple[int, str, float, Path]:
    """Exit code, what was said, seconds from the fault to the end, and the run's directory."""
    run = folder / "run"
    argv = [kind, *SHORT.split(), *more.split(), "--output_dir", str(run)]
    ranks = torchrun(FAULT, argv, folder)
    out, err = ranks.communicate(timeout=120)
    ended = time.time()
    planted = re.search(r"fault at ([0-9.]+)", err)
    assert planted, err[-3000:]
    return ranks.returncode, out + err, ended - float(planted[1]), run


@pytest.mark.case("F16")
@pytest.mark.parametrize(
    "kind, more",
    [
        ("error in reward", "--save_steps 0"),
        ("error in rollout", "--save_steps 0 --fsdp"),
        ("error in forward", "--save_steps 0 --fsdp"),
        ("error in update", "--save_steps 0"),
        ("error in update", "--fsdp"),  # the other rank is in the middle of a joint backward
    ],
)
def test_an_error_of_one_rank_ends_all_of_them_and_loses_nothing(kind, more, made, tmp_path):
    code, said, seconds, run = failing(kind, tmp_path, more)
    assert code != 0 and seconds < 10
    assert "error: rank 1: ValueError: planted" in said  # rank 0 says it, too
    assert said.count("\nValueError: planted") == 1  # after its traceback
    train_grpo.main(["--resume_from_checkpoint", str(run), "--no-fsdp"])
    assert_equal_weights(run, made / "one" / "plain")


@pytest.mark.case("F17")
def test_a_killed_rank_takes_the_others_along_and_leaves_checkpoints_whole(made, tmp_path):
    code, said, seconds, run = failing("kill in reward", tmp_path)
    assert code != 0 and seconds < 10 and "Signal 9 (SIGKILL)" in said  # torchrun names the rank
    train_grpo.main(["--resume_from_checkpoint", str(run), "--no-fsdp"])
    assert_equal_weights(run, made / "one" / "plain")


@pytest.mark.parametrize(
    "kind, more, step",
    [
        ("stop in update", "", 2),
        ("stop twice in reward", "", 2),  # a batch system tells every process, and torchrun, too
        ("stop in last gallery", "--fsdp", 3),
        ("stop in unshard", "--fsdp", 2),
    ],
)
def test_a_signal_to_one_rank_stops_all_of_them_at_the_same_step(kind, more, step, made, tmp_path):
    code, said, seconds, run = failing(kind, tmp_path, f"--save_steps 0 {more}")
    assert code != 0 and seconds < 10
    assert f"stopped by SIGTERM after step {step}; saved {run}" in said
    train_grpo.main(["--resume_from_checkpoint", str(run), "--no-fsdp"])
    assert_equal_weights(run, made / "one" / "plain")
    assert len(rows(run)) == STEPS + 1


def test_ranks_that_read_other_data_are_refused(tmp_path):
    """One rank cannot read a picture: its share would be of other questions."""
    program = (
        "import os, train_grpo\n"
        "from training import setup\n"
        "from runtime import console\n"
        "usable = setup.usable_examples\n"
        "def fewer(examples, *more):\n"
        "    return usable(examples, *more)[int(os.environ['RANK']):]\n"
        "setup.usable_examples = fewer\n"
        "console.run(train_grpo.main)"
    )
    out = tmp_path / "run"
    ranks = torchrun(program, [*SHORT.split(), "--output_dir", str(out)], tmp_path)
    said = "".join(ranks.communicate(timeout=60))
    assert ranks.returncode != 0 and "rank 1 reads other data than rank 0" in said
    assert not out.exists()


@pytest.mark.case("F18")
def test_a_slow_rank_is_waited_for(made, tmp_path):
    code, said, seconds, run = failing("slow in rollout", tmp_path)
    assert code == 0 and seconds > distributed.PATIENCE + 2
    row = rows(run)[3]
    assert row["seconds/rollout"] > 7  # the run takes as long as its slowest rank
    assert row["waiting/rank_0"] > 6 and row["waiting/rank_1"] < 3  # which is told
    assert_equal_weights(run, made / "one" / "plain")


def test_torchrun_told_to_stop_leaves_a_run_to_go_on_with(tmp_path):
    run = tmp_path / "run"
    argv = [*SHORT.split(), "--max_steps", "100000", "--save_steps", "0", "--output_dir", str(run)]
    ranks = torchrun(
        "import train_grpo; from runtime import console\nconsole.run(train_grpo.main)",
        argv,
        tmp_path,
    )
    deadline = time.time() + 100
    while time.time() < deadline and not (
        (run / "completions.jsonl").exists() and len(rows(run)) > 2
    ):
        time.sleep(0.1)
    ranks.send_signal(signal.SIGTERM)
    out, err = ranks.communicate(timeout=60)
    assert ranks.returncode != 0 and "stopped by SIGTERM" in out, err[-3000:]
    assert len(list(run.glob("step_*"))) == 1


def test_what_cannot_work_with_ranks_is_said_before_anything_is_left(tmp_path, capsys):
    argv = [*SHORT.split(), "--fsdp", "--output_dir", str(tmp_path / "a")]
    with pytest.raises(InputError, match="--fsdp.*torchrun"):
        train_grpo.main(argv)
    argv = [*SHORT.split(), "--prompts_per_step", "1", "--output_dir", str(tmp_path / "b")]
    ranks = torchrun(
        "import train_grpo; from runtime import console\nconsole.run(train_grpo.main)",
        argv,
        tmp_path,
    )
    out, err = ranks.communicate(timeout=60)
    assert ranks.returncode != 0 and "--prompts_per_step 1: must be" in err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


# ---- alone ---------------------------------------------------------------------------------------


def test_alone_nothing_is_shared():
    assert distributed.world_size() == 1 and distributed.rank() == 0
    assert distributed.share([1, 2, 3]) == [1, 2, 3] and distributed.all_gather("x") == ["x"]
    model = load_model(BASE_MODEL)
    with fsdp.whole(model):
        pass
    parameter = torch.nn.Parameter(torch.ones(2))
    assert fsdp.full(parameter) is parameter
    assert not signals.previous


def test_half_a_launch_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    for name in ("MASTER_PORT", "RANK"):
        monkeypatch.delenv(name)
        with pytest.raises(InputError, match=f"WORLD_SIZE is set, but not {name}"):
            train_grpo.main([])
        monkeypatch.setenv(name, "0")


@pytest.mark.case("O6")
@pytest.mark.parametrize("items, ranks", [(3, 2), (8, 3), (7, 7), (5, 8)])
def test_shares_cover_everything_once_and_in_order(items, ranks, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    shares = []
    for own in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda own=own: own)
        shares.append(distributed.share(list(range(items))))
    assert sum(shares, []) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
