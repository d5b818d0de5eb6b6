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
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train_grpo
import train_ppo
import train_sft
from model.processor import Processor
from model.weights import load_model
from runtime import distributed
from runtime.errors import InputError
from runtime.signals import signals
from tasks import TASKS, load_task
from tests.acting.test_episodes import Album
from tests.helpers import eval_rows, pay_odd_lengths, rows, step_rows
from train_grpo import GRPOConfig
from training import fsdp

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
# Three questions a step: shards of one and of two. 5e-6: where a gradient is next to zero, AdamW
# makes a whole step of what is left of it after rounding.
SHORT = f"--task count --max_steps {STEPS} --eval_steps {STEPS} --save_steps 1 --train_size 8"
SHORT += " --held_out_size 5 --prompts_per_step 3 --num_generations 4 --max_completion_length 16"
SHORT += " --learning_rate 5e-6 --report_prompts 1 --save_total_limit none --device cpu"
HARD = "--beta 0.04 --num_iterations 2 --no-freeze_vision --groups_per_micro_batch 1"
HARD += " --loss_type grpo"
SFT = "--max_steps 3 --eval_steps 3 --save_steps 1 --train_size 8 --held_out_size 5"
SFT = f"--task count --cot {SFT} --prompts_per_step 3 --learning_rate 5e-6 --device cpu"
RUNS = {  # name -> (script, flags of all, flags of two ranks)
    "plain": ("train_grpo", SHORT, ""),
    "hard": ("train_grpo", f"{SHORT} {HARD}", ""),
    "hard, sharded": ("train_grpo", f"{SHORT} {HARD} --gradient_checkpointing", "--fsdp"),
    "one rank has zero std": ("train_grpo", f"{SHORT} --train_size 3 --reward REWARD", ""),
    "the same, sharded": ("train_grpo", f"{SHORT} --train_size 3 --reward REWARD", "--fsdp"),
    "of the whole step": (
        "train_grpo",
        f"{SHORT} --advantage_estimator reinforce --scale_rewards batch",
        "",
    ),
    "others speak": (
        "train_grpo",
        f"{SHORT} --replay_buffer_size 4 --delta 3 --dynamic_sample --num_generations 2"
        " --max_resample_times 1 --train_size 5",
        "",
    ),
    "acts": ("train_grpo", f"{SHORT} --beta 0.04 --num_iterations 2", ""),
    "acts, sft": ("train_sft", SFT, ""),
    "acts, sft, sharded": ("train_sft", f"{SFT} --groups_per_micro_batch 1", "--fsdp"),
    "acts, ppo": ("train_ppo", f"{SHORT} --beta 0.04 --critic_warmup 0", ""),
    "ppo": ("train_ppo", f"{SHORT} --beta 0.04 --critic_warmup 0", ""),
    "sft": ("train_sft", SFT, ""),
    "sft, sharded": ("train_sft", f"{SFT} --groups_per_micro_batch 1", "--fsdp"),
    "lora": ("train_grpo", f"{SHORT} --lora_rank 4 --beta 0.04", ""),
    "bfloat16, sharded": ("train_grpo", f"{SHORT} --dtype bfloat16", "--fsdp"),
    # Of the other families. "No image": one rank has DeepStack's features to add, one has not.
    "qwen2_5_vl": ("train_grpo", f"{SHORT} {HARD}", ""),
    "qwen2_5_vl, sharded": ("train_grpo", f"{SHORT} {HARD} --gradient_checkpointing", "--fsdp"),
    "qwen3_vl": ("train_grpo", f"{SHORT} {HARD}", ""),
    "qwen3_vl, sharded": ("train_grpo", f"{SHORT} {HARD} --gradient_checkpointing", "--fsdp"),
    "qwen3_vl, no image, sharded": (
        "train_grpo",
        f"{SHORT} {HARD} --train_size 3",
        "--fsdp",
    ),
}


def count_with_changes(load):
    """A task's `load` for these runs: a random model earns something, so that its weights move.

    In runs with "no image" in their name one question of a step has none. Each rank has one
    question at least, so while one computes it, the other computes one with an image. In those with
    "acts" completions are shown something after every vowel; of the demonstrations the first is
    shown pictures, so that in some steps one rank has none.
    """

    def changed(cfg, image_cfg=None):
        task = pay_odd_lengths(load)(cfg, image_cfg)
        name = Path(getattr(cfg, "output_dir", None) or "").name
        if "acts" in name:
            asks = replace(task.train[0].reasoning, calls=(("why", "a"), ("so", "e"), ("so", "i")))
            train = [replace(task.train[0], reasoning=asks), *task.train[1:]]
            return replace(task, train=train, environment=Album())
        if "no image" not in name:
            return task
        first, *others = task.train
        return replace(task, train=[replace(first, images=()), *others])

    return changed


SETUP = """
from tasks import TASKS
from tests.training.test_ranks import count_with_changes
TASKS["count"].load = count_with_changes(TASKS["count"].load)
"""
ALL_RUNS = f"""
import json
import evaluate, train_grpo, train_ppo, train_sft
from runtime import distributed
scripts = {{"train_grpo": train_grpo, "train_ppo": train_ppo, "train_sft": train_sft}}
scripts["evaluate"] = evaluate
if __name__ == "__main__":  # workers of --reward import this file, too
    {SETUP.strip().replace(chr(10), chr(10) + "    ")}
    with distributed.process_group():
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


@pytest.fixture(scope="module", autouse=True)
def paid():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASKS["count"], "load", count_with_changes(TASKS["count"].load))
        yield


@pytest.fixture(scope="module")
def short(tiny_dir) -> str:
    return f"{SHORT} --model {tiny_dir}"


def model_of(name: str, tiny_dirs: dict[str, Path]) -> Path:
    """The checkpoint that a run of RUNS starts from."""
    return tiny_dirs.get(name.split(",")[0], tiny_dirs["qwen2_vl"])


@pytest.fixture(scope="module")
def runs(request, tiny_dir, tiny_dirs, tmp_path_factory) -> Path:
    """one/NAME and two/NAME: every run by one rank and by two, and evaluations.

    Where a single test is run, only the run that it is about.
    """
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    name = asked[0].params.get("name") if len(asked) == 1 and asked[0] else None
    wanted = {name: RUNS[name]} if name else RUNS
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    reward = folder / "reward.py"
    cfg = GRPOConfig(task="count", train_size=3)
    paid = load_task(cfg, Processor(tiny_dir)).train[0].id
    reward.write_text(
        "def paid(completions, example):\n"
        f"    return [len(c) % 7 * (example.id == {paid!r}) for c in completions]\n"
    )
    jobs = []
    for name, (script, flags, more) in wanted.items():
        model = str(model_of(name, tiny_dirs))
        flags = [*flags.replace("REWARD", f"{reward}:paid").split(), "--model", model]
        jobs.append((script, [*flags, *more.split(), "--output_dir", str(folder / "two" / name)]))
        scripts = {"train_grpo": train_grpo, "train_ppo": train_ppo, "train_sft": train_sft}
        scripts[script].main([*flags, "--output_dir", str(folder / "one" / name)])
    flags = (
        f"--model {tiny_dir} --task count --held_out_size 7 --device cpu --batch_size 3 --output"
    )
    evaluate.main([*flags.split(), str(folder / "one" / "answers.jsonl")])
    jobs.append(("evaluate", [*flags.split(), str(folder / "two" / "answers.jsonl")]))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    ranks = torchrun(ALL_RUNS, [str(folder / "jobs.json")], folder)
    out, err = ranks.communicate(timeout=300)
    assert ranks.returncode == 0, err[-4000:]
    (folder / "stdout").write_text(out)
    return folder


def weights(run: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Of a model, or of an adapter."""
    (place,) = (run / f"step_{step}").glob("*/*model.safetensors")
    return load_file(place)


def assert_equal_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    differences = torch.cat([(ours[k] - theirs[k]).abs().flatten() for k in ours])
    assert float(differences.max()) <= 1e-6
    assert float(differences.mean()) <= 1e-9  # where they have moved by 1e-5


@pytest.mark.case("O6")
@pytest.mark.parametrize("name", [name for name in RUNS if "bfloat16" not in name])
def test_two_ranks_make_the_run_of_one(runs, tiny_dirs, name):
    one, two = runs / "one" / name, runs / "two" / name
    moved = weights(one)
    start = load_file(model_of(name, tiny_dirs) / "model.safetensors")
    if name == "lora":
        start = {key: torch.zeros_like(moved[key]) for key in moved if "lora_B" in key}
    assert any(not torch.equal(moved[k], start[k]) for k in start)
    assert_equal_weights(one, two)
    logs = [rows(run / "metrics.jsonl") for run in (one, two)]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == {key for key in theirs if not key.startswith("waiting/")}
        for key in ours.keys() - {"step_time", "memory_gb", "tokens_per_second"}:
            if not key.startswith(("seconds/", "sampling/")):
                assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-6), key


@pytest.mark.case("O6", "O16")
@pytest.mark.parametrize("name", [name for name in RUNS if "sft" not in name and "16" not in name])
def test_the_same_seed_draws_the_same_completions_in_the_same_order(runs, name):
    one, two = (runs / side / name / "completions.jsonl" for side in ("one", "two"))
    for ours, theirs in zip(one.open(), two.open(), strict=True):
        ours, theirs = json.loads(ours), json.loads(theirs)
        assert theirs.pop("advantage") == pytest.approx(ours.pop("advantage"), abs=1e-4)
        parts, own = theirs.pop("parts"), ours.pop("parts")
        assert parts == pytest.approx(own) and ours == theirs


@pytest.mark.case("O6")
def test_one_rank_had_zero_std_only(runs):
    zero_std = [
        row["frac_reward_zero_std"] for row in step_rows(runs / "two" / "one rank has zero std")
    ]
    assert zero_std == pytest.approx([2 / 3] * STEPS)  # one question of three, so one rank of two


def test_bfloat16_shards_move_as_one_rank_does(runs, tiny_dir):
    """Rounding differs with the shapes, so directions are compared."""
    start = load_file(tiny_dir / "model.safetensors")
    run, name = "bfloat16, sharded", "model.layers.0.mlp.up_proj.weight"
    states = [
        load_file(runs / side / run / "step_2/trainer/optimizer.safetensors")
        for side in ("one", "two")
    ]
    assert states[0].keys() == states[1].keys()
    moves = [state[f"master/{name}"] - start[name].bfloat16().float() for state in states]
    assert all(move.abs().max() > 0 for move in moves)
    assert torch.cosine_similarity(*(move.flatten() for move in moves), dim=0) > 0.9
    published = [weights(runs / side / run)[name] for side in ("one", "two")]
    assert published[0].dtype == published[1].dtype == start[name].dtype
    assert torch.allclose(*(weight.float() for weight in published), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("name", ["plain", "hard, sharded"])
def test_a_checkpoint_does_not_know_how_many_ranks_wrote_it(runs, name, tmp_path):
    shapes = [
        {key: value.shape for key, value in load_file(file).items()}
        for side in ("one", "two")
        for file in [runs / side / name / "step_2" / "trainer" / "optimizer.safetensors"]
    ]
    assert shapes[0] == shapes[1]
    # begun by two, ended by one
    run = tmp_path / "run"
    shutil.copytree(runs / "two" / name, run)
    shutil.rmtree(run / f"step_{STEPS}")
    train_grpo.main(["--resume_from_checkpoint", str(run), "--no-fsdp"])
    assert_equal_weights(run, runs / "one" / name)
    assert len(step_rows(run)) == STEPS and len(eval_rows(run)) == 2


def test_evaluation_is_shared_and_its_result_is_that_of_one(runs):
    one, two = ((runs / side / "answers.jsonl").read_text() for side in ("one", "two"))
    assert one == two and one.count("\n") == 14  # held out and out of distribution
    assert (runs / "stdout").read_text().count("count held_out, 7 questions") == 1


def test_ranks_leave_one_run_behind(runs):
    for run in (runs / "two").iterdir():
        if run.is_dir():
            assert (run / "report.html").is_file()
            assert not list(run.glob(".*unfinished")) and len(step_rows(run)) == STEPS


# ---- failures ------------------------------------------------------------------------------------

FAULT = f"""
import json, os, signal, time
import train_grpo
from reporting.gallery import Gallery
from runtime import console
from training import scoring
{SETUP}
kind, where = sys.argv.pop(1).split(" in ")
def fault():
    print("fault at", time.time(), file=sys.stderr, flush=True)
    if kind == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop": os.kill(os.getpid(), signal.SIGTERM)
    if kind == "stop twice": [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]
    if kind == "slow": time.sleep(3)
    if kind == "error": raise ValueError("planted")
def watch(place, name, call, rank="1"):
    original, calls = getattr(place, name), [0]
    def watched(*args, **kwargs):
        calls[0] += 1
        if os.environ["RANK"] == rank and calls[0] == call: fault()
        return original(*args, **kwargs)
    setattr(place, name, watched)
if where == "update": watch(train_grpo, "policy_loss", 3)
if where == "rollout": watch(train_grpo, "sample_groups", 3)
if where == "reward": watch(scoring.Scorer, "score", 3)
if where == "last gallery": watch(Gallery, "held_out", 2, "0")  # of rank 0 alone
console.run(train_grpo.main)
"""


def fail(kind: str, folder: Path, short: str) -> tuple[int, str, float, Path]:
    """Exit code, output, seconds from the fault to the end, and the run's directory."""
    run = folder / "run"
    ranks = torchrun(FAULT, [kind, *short.split(), "--output_dir", str(run)], folder)
    out, err = ranks.communicate(timeout=120)
    ended = time.time()
    planted = re.search(r"fault at ([0-9.]+)", err)
    assert planted, err[-3000:]
    return ranks.returncode, out + err, ended - float(planted[1]), run


@pytest.mark.case("F16")
@pytest.mark.parametrize(
    "kind, more",
    [("error in reward", ""), ("error in update", "--fsdp")],  # in the middle of a collective
)
def test_an_error_of_one_rank_is_named_and_ends_all_of_them(kind, more, runs, short, tmp_path):
    code, output, seconds, run = fail(kind, tmp_path, f"{short} {more}")
    assert code != 0 and seconds < 10
    assert output.count("error: rank 1: ValueError: planted") == 1
    assert (
        "Traceback (most recent call last)" in output and output.count("ValueError: planted") == 2
    )
    train_grpo.main(["--resume_from_checkpoint", str(run), "--no-fsdp"])
    assert_equal_weights(run, runs / "one" / "plain")


@pytest.mark.case("F17")
def test_a_killed_rank_takes_the_others_along_and_leaves_checkpoints_sound(runs, short, tmp_path):
    code, output, seconds, run = fail("kill in reward", tmp_path, short)
    assert code != 0 and seconds < 10 and "Signal 9 (SIGKILL)" in output  # torchrun names the rank
    assert "error: rank 0: another rank has ended" in output
    train_grpo.main(["--resume_from_checkpoint", str(run)])
    assert_equal_weights(run, runs / "one" / "plain")


@pytest.mark.case("F12")
@pytest.mark.parametrize(
    "kind, more, step",
    [
        ("stop in update", "", 2),
        ("stop twice in reward", "", 2),  # a batch system signals every process, and torchrun, too
        ("stop in last gallery", "--fsdp", 3),
    ],
)
def test_a_signal_to_one_rank_stops_all_of_them_at_the_same_step(
    kind, more, step, runs, short, tmp_path
):
    code, output, seconds, run = fail(kind, tmp_path, f"{short} --save_steps 0 {more}")
    assert code != 0 and seconds < 10
    assert f"stopped by SIGTERM after step {step}; saved {run}" in output
    if step < STEPS:
        train_grpo.main(["--resume_from_checkpoint", str(run), "--no-fsdp"])
    assert_equal_weights(run, runs / "one" / "plain")
    assert len(step_rows(run)) == STEPS and len(eval_rows(run)) == 2


def test_ranks_that_read_other_data_are_refused(short, tmp_path):
    """One rank cannot read a picture: its shard would be of other questions."""
    program = (
        "import os, train_grpo\n"
        "from training import setup\n"
        "from runtime import console\n"
        "usable = setup.usable_splits\n"
        "def fewer(*args):\n"
        "    rank = int(os.environ['RANK'])\n"
        "    return {name: split[rank:] for name, split in usable(*args).items()}\n"
        "setup.usable_splits = fewer\n"
        "console.run(train_grpo.main)"
    )
    out = tmp_path / "run"
    ranks = torchrun(program, [*short.split(), "--output_dir", str(out)], tmp_path)
    output = "".join(ranks.communicate(timeout=60))
    assert ranks.returncode != 0 and "rank 1 reads other data than rank 0" in output
    assert not out.exists()


@pytest.mark.case("F18")
def test_a_slow_rank_is_waited_for(runs, short, tmp_path):
    code, _, seconds, run = fail("slow in rollout", tmp_path, short)
    assert code == 0
    row = step_rows(run)[2]
    assert row["seconds/rollout"] > 3  # the run takes as long as its slowest rank
    assert row["waiting/rank_0"] > 2.5 and row["waiting/rank_1"] < 1.5  # which is logged
    assert_equal_weights(run, runs / "one" / "plain")


@pytest.mark.case("F12")
def test_torchrun_told_to_stop_leaves_a_run_to_resume(short, tmp_path):
    run = tmp_path / "run"
    argv = f"{short} --max_steps 100000 --save_steps 0 --output_dir {run}".split()
    ranks = torchrun(
        f"import train_grpo\nfrom runtime import console\n{SETUP}console.run(train_grpo.main)",
        argv,
        tmp_path,
    )
    deadline = time.time() + 100
    while time.time() < deadline and not (
        (run / "completions.jsonl").exists() and len(rows(run / "metrics.jsonl")) > 2
    ):
        time.sleep(0.1)
    ranks.send_signal(signal.SIGTERM)
    out, err = ranks.communicate(timeout=60)
    assert ranks.returncode != 0 and "stopped by SIGTERM" in out, err[-3000:]
    assert len(list(run.glob("step_*"))) == 1


def test_what_cannot_work_with_ranks_is_said_before_anything_is_left(short, tmp_path):
    argv = [*short.split(), "--fsdp", "--output_dir", str(tmp_path / "a")]
    with pytest.raises(InputError, match="--fsdp.*torchrun"):
        train_grpo.main(argv)
    argv = [*short.split(), "--prompts_per_step", "1", "--output_dir", str(tmp_path / "b")]
    ranks = torchrun(
        "import train_grpo\nfrom runtime import console\nconsole.run(train_grpo.main)",
        argv,
        tmp_path,
    )
    out, err = ranks.communicate(timeout=60)
    assert ranks.returncode != 0 and "--prompts_per_step 1: must be" in err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


# ---- alone ---------------------------------------------------------------------------------------


def test_one_process_has_nothing_to_share(tiny_dir):
    assert distributed.world_size() == 1 and distributed.rank() == 0
    assert distributed.local_shard([1, 2, 3]) == [1, 2, 3] and distributed.all_gather("x") == ["x"]
    model = load_model(tiny_dir)
    with fsdp.unsharded(model):
        pass
    parameter = torch.nn.Parameter(torch.ones(2))
    assert fsdp.full_tensor(parameter) is parameter
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
def test_shards_cover_everything_once_and_in_order(items, ranks, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    shards = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shards.append(distributed.local_shard(list(range(items))))
    assert sum(shards, []) == list(range(items))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
