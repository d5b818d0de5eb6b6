"""Scoring: whatever a reward function does, GRPO sees finite numbers only.

A user's function may raise, return too few values, NaN, None or text; each fault is counted, shown
once, and costs its own group alone; too many stop the run. The optional shaping parts are added
with their weights. Run: pytest tests/training/test_scoring.py
"""

import gc
import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train_grpo
from data.examples import Example
from kernels import group_advantages
from reporting.metrics import completion_records, rollout_metrics, unpaid_parts
from rewards import Reward
from runtime.errors import InputError
from runtime.run_directory import FAULT_LOG
from sample import Rollout
from tasks.task import Task
from train_grpo import GRPOConfig
from training import reward_worker
from training.reward_worker import Workers, numbers
from training.scoring import (
    FAULTS,
    Scorer,
    UserReward,
    length_rewards,
    repetition_penalty,
    soft_overlong,
    user_reward,
)

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["<answer>red</answer>", "<answer>blue</answer>", "red", "<answer>red red</answer>"]
EXAMPLES = [Example(f"e{n}", (), "?", target) for n, target in enumerate(("red", "blue", "green"))]


def task() -> Task:
    def reward(text, example, weights, dense):
        correct = float(example.target in text) + 0.25 * dense * (example.target not in text)
        return Reward(correct, {"correct": correct})

    def scores(text, example):
        return {"strict": float(example.target in text)}

    return Task("fake", [], {}, reward, scores)


def rollout(G: int = 4, lengths: list[int] | None = None) -> Rollout:
    lengths = lengths or [5] * (G * len(EXAMPLES))
    ids = [torch.zeros(n, dtype=torch.int64) for n in lengths]
    return Rollout(ids, [], ["stop"] * len(ids), (TEXTS[:G]) * len(EXAMPLES))


def config(**more) -> GRPOConfig:
    return GRPOConfig(**{"num_generations": 4, "max_completion_length": 20, "max_steps": 10} | more)


def user_file(tmp_path, body: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(f"def pay(completions, example):\n    {body}\n")
    return f"{path}:pay"


class Log:
    """As much of a RunLog as a Scorer needs: rows by file, which may lie in a directory."""

    def __init__(self, directory: Path = Path("nowhere")):
        self.directory, self.rows = directory, []

    def append(self, file: str, rows: list[dict]) -> None:
        self.rows += [row | {"file": file} for row in rows]


def step(cfg: GRPOConfig, examples=EXAMPLES, log=None):
    """Rewards (N, G), their parts, and the metrics on faults."""
    scorer = Scorer(task(), cfg, user_reward(cfg))
    rewards, parts = scorer.score(examples, rollout(), 0)
    return rewards, parts, scorer.fault_metrics(len(parts), log or Log(), 1)


def scored(cfg: GRPOConfig) -> Rollout:
    """The rollout as the logs get it."""
    scored = rollout()
    scored.rewards, scored.parts = Scorer(task(), cfg, user_reward(cfg)).score(EXAMPLES, scored, 0)
    scored.advantages = group_advantages(scored.rewards, "group")
    return scored


# ---- the task's own reward -----------------------------------------------------------------------


def test_every_completion_is_scored_against_its_own_question():
    rewards, parts, faults = step(config())
    assert rewards.tolist() == [[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert len(parts) == 12 and parts[0] == {"correct": 1.0} and faults == {}


def test_dense_credit_decays_linearly_to_nothing_if_asked():
    for schedule, at_half in (("constant", 0.25), ("linear", 0.125)):
        scorer = Scorer(task(), config(dense=1.0, dense_schedule=schedule))
        rewards = [scorer.score(EXAMPLES, rollout(), k)[0][2, 0].item() for k in (0, 5, 9)]
        assert rewards[:2] == [0.25, at_half]
        assert rewards[2] == pytest.approx(0.25 if schedule == "constant" else 0.025)


@pytest.mark.case("I67")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_task_reward_that_is_not_finite_names_the_example(value):
    broken = Task("fake", [], {}, lambda *_: Reward(value, {"x": value}), lambda *_: {})
    with pytest.raises(InputError, match="example e0: rewards must be finite"):
        Scorer(broken, config()).score(EXAMPLES, rollout(), 0)


# ---- shaping -------------------------------------------------------------------------------------


@pytest.mark.case("I40")
def test_shaping_parts_are_added_with_their_weights_and_logged_unweighted():
    cfg = config(overlong_weight=2.0, overlong_buffer=10, repetition_weight=1.0, length_weight=1.0)
    lengths = [5, 15, 20, 10] * 3
    rewards, parts = Scorer(task(), cfg).score(EXAMPLES, rollout(lengths=lengths), 0)
    assert [p["overlong"] for p in parts[:4]] == [0.0, -0.5, -1.0, 0.0]
    # the wrong completion (number 1) gains nothing by being shorter than the mean
    assert [p["length"] for p in parts[:4]] == pytest.approx([0.5, min(0, -1 / 6), -0.5, 1 / 6])
    assert all(p["repetition"] == 0.0 for p in parts)
    expected = [1 + 0.5, -1.0 - 1 / 6, 1 - 2.0 - 0.5, 1 + 1 / 6]
    assert rewards[0].tolist() == pytest.approx(expected)


def test_being_nearly_right_is_no_reason_to_be_short():
    cfg = config(dense=1.0, length_weight=1.0)  # every wrong text is worth 0.25 here
    _, parts = Scorer(task(), cfg).score(EXAMPLES, rollout(lengths=[9, 5, 9, 9] * 3), 0)
    assert parts[1]["correct"] == 0.25 and parts[1]["length"] == 0.0


@pytest.mark.parametrize(
    "name, value",
    [(f"{part}_weight", 0.25) for part in ("correct", "confidence", "format", "length")]
    + [("dense", 0.5), ("dense_schedule", "linear")],
)
def test_flags_of_the_tasks_own_reward_are_refused_beside_another(name, value):
    with pytest.raises(InputError, match=f"--{name} .*left out with --reward"):
        config(reward="mine.py:pay", **{name: value})
    config(reward="mine.py:pay", overlong_weight=1.0, repetition_weight=1.0)  # these are added


def test_a_credit_that_is_not_given_cannot_decay():
    with pytest.raises(InputError, match="--dense_schedule .*left out where --dense is 0"):
        config(dense_schedule="linear")


def test_without_weights_no_shaping_part_appears():
    assert all(p.keys() == {"correct"} for p in step(config())[1])


def test_a_buffer_longer_than_the_completion_is_refused_by_flag():
    with pytest.raises(InputError, match="--overlong_buffer"):
        Scorer(task(), config(overlong_weight=1.0, overlong_buffer=21))


def test_length_rewards_are_those_of_the_formula_and_vanish_for_equal_lengths():
    assert length_rewards([10, 20, 30], [True, True, True]) == [0.5, 0.0, -0.5]
    assert length_rewards([10, 20, 30], [False, False, False]) == [0.0, 0.0, -0.5]
    assert length_rewards([7, 7], [True, False]) == [0.0, 0.0]


def test_the_soft_overlong_penalty_is_dapo_s():
    by_hand = {0: 0, 70: 0, 80: 0, 81: -0.05, 90: -0.5, 99: -0.95, 100: -1, 101: -1, 10**9: -1}
    for length, penalty in by_hand.items():
        assert soft_overlong(length, 100, 20) == pytest.approx(penalty)
    assert math.copysign(1.0, soft_overlong(5, 100, 20)) == 1.0  # 0, not -0
    values = [soft_overlong(length, 100, 20) for length in range(300)]
    assert values == sorted(values, reverse=True) and min(values) == -1.0 and max(values) == 0.0
    assert soft_overlong(50, 100, 100) == -0.5


def test_the_repetition_penalty_is_the_share_of_repeated_n_grams():
    assert repetition_penalty("") == repetition_penalty("a b c") == 0.0
    assert repetition_penalty("a b c d e f g") == 0.0
    assert repetition_penalty("a a a a a") == -0.5  # two 4-grams, one of them new
    assert repetition_penalty("A a  a\na a") == -0.5
    assert repetition_penalty("a b a b", n=1) == -0.5
    assert repetition_penalty("a b " * 1000) == pytest.approx(2 / 1997 - 1)


@settings(deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=30).map(" ".join), st.integers(1, 5))
def test_saying_it_all_again_lowers_the_repetition_penalty_but_for_the_seam(text, n):
    """Only the n - 1 n-grams across the seam can be new."""
    once, twice = repetition_penalty(text, n), repetition_penalty(f"{text} {text}", n)
    total = max(len(text.split()) - n + 1, 0)  # n-grams of the text
    unique = round((once + 1) * total)
    at_most = (unique + n - 1) / (2 * total + n - 1) - 1 if total else 0.0
    assert -1.0 < twice <= at_most + 1e-12 and -1.0 < once <= 0.0


# ---- a reward from outside -----------------------------------------------------------------------


def test_a_users_function_replaces_the_reward_and_sees_the_example(tmp_path):
    body = "return [len(c) * (example.target == 'blue') for c in completions]"
    rewards, parts, faults = step(config(reward=user_file(tmp_path, body)))
    assert rewards[1].tolist() == [len(text) for text in TEXTS]
    assert rewards[0].tolist() == [0.0] * 4
    assert parts[4] == {"user": len(TEXTS[0])}
    assert faults == {f"reward/{kind}": 0.0 for kind in FAULTS}


def test_a_users_function_may_use_the_projects_rewards(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from rewards import classification_reward\n"
        "def pay(completions, example):\n"
        "    return [classification_reward(c, example.target).total for c in completions]\n"
    )
    rewards, _, _ = step(config(reward=f"{path}:pay"))
    assert rewards[0].tolist() == [1.0, 0.0, 0.0, 0.0]


FAULTY = {  # body -> (fault, completions lost); each hits only the group whose target is blue
    "1 / (example.target != 'blue'); return [1.0] * 4": ("exception", 4),
    "return [1.0] * (4 - (example.target == 'blue'))": ("wrong_length", 4),
    "return [float('nan') if example.target == 'blue' else 1.0, 2.0, 3.0, 4.0]": ("not_finite", 1),
    "return ['much' if example.target == 'blue' else 1.0, 2.0, 3.0, 4.0]": ("exception", 4),
    "return None if example.target == 'blue' else [1.0] * 4": ("exception", 4),
    "return dict.fromkeys(range(4)) if example.target == 'blue' else [1] * 4": ("exception", 4),
}


@pytest.mark.case("I64", "I66", "I67")
@pytest.mark.parametrize("body", list(FAULTY))
def test_a_fault_is_counted_shown_and_costs_its_own_group_alone(
    tmp_path, capsys, body, monkeypatch
):
    monkeypatch.setattr("training.scoring.MAX_FAULTS", 0.5)
    kind, lost = FAULTY[body]
    rewards, parts, faults = step(config(reward=user_file(tmp_path, body)))
    assert faults[f"reward/{kind}"] == lost and sum(faults.values()) == lost
    assert torch.isfinite(rewards).all() and parts[4 : 4 + lost] == [None] * lost
    assert {tuple(p) for p in parts[:4] + parts[4 + lost :]} == {("user",)}
    assert f"first fault, {kind}" in capsys.readouterr().err
    advantages = group_advantages(rewards, "group")
    assert (advantages[1, :lost] == 0).all()  # neither punished nor paid


@pytest.mark.case("I65")
def test_none_leaves_a_completion_out_of_its_groups_comparison(tmp_path):
    body = "return [1.0, None, 3.0, 5.0]"
    rewards, _, faults = step(config(reward=user_file(tmp_path, body)))
    assert rewards[0].tolist() == [1.0, 3.0, 3.0, 5.0]  # stands in with the mean of the others
    assert group_advantages(rewards, "group")[0, 1] == 0
    assert sum(faults.values()) == 0  # it was asked for: no fault


@pytest.mark.case("I65")
def test_a_step_without_any_value_gives_no_gradient(tmp_path):
    rewards, parts, _ = step(config(reward=user_file(tmp_path, "return [None] * 4")))
    assert not group_advantages(rewards, "group").any() and parts == [None] * 12


@pytest.mark.case("I64")
@pytest.mark.parametrize("max_steps, until", [(1, 1), (4, 1), (10, 3), (1000, 3)])
def test_more_faults_than_a_fifth_of_ten_steps_stop_the_run(tmp_path, capsys, max_steps, until):
    cfg = config(reward=user_file(tmp_path, "raise KeyError('colour')"), max_steps=max_steps)
    scorer = Scorer(task(), cfg, user_reward(cfg))
    for k in range(1, until + 1):
        scorer.score(EXAMPLES, rollout(), 0)
        if k < until:
            assert scorer.fault_metrics(12, Log(), k)["reward/exception"] == 12.0
    with pytest.raises(InputError, match=rf"of the last {12 * until} comp.* \(exception {12 * k}"):
        scorer.fault_metrics(12, Log(), k)
    shown = capsys.readouterr().err
    assert "KeyError: 'colour'" in shown and shown.count("first fault") == 1


@pytest.mark.parametrize("questions", [1, 2, 3, 4])
def test_one_dead_worker_does_not_end_a_run_of_few_questions(questions):
    scorer = Scorer(task(), config(max_steps=100), SimpleNamespace(faults=Counter(), first={}))
    for step_number in range(100):
        if step_number % 10 == 0:
            scorer.user.faults["died"] = 8
        scorer.fault_metrics(8 * questions, Log(), 1)
    scorer.user.faults["died"] = 24  # three in ten steps of one question, thirteen of four
    if questions == 1:
        with pytest.raises(InputError, match="failed for 24 of the last 80"):
            scorer.fault_metrics(8, Log(), 1)


@pytest.mark.case("I64", "I66", "I67")
def test_the_first_fault_of_each_kind_is_shown_and_kept_in_the_runs_directory(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("training.scoring.MAX_FAULTS", 1.0)
    body = "if example.id == 'e2': return [1.0]\n"
    body += "    raise ValueError(f'example {example.id}')"
    cfg, log = config(reward=user_file(tmp_path, body)), Log(tmp_path)
    scorer = Scorer(task(), cfg, user_reward(cfg))
    for number in (1, 2):
        _, parts = scorer.score(EXAMPLES, rollout(), number)
        metrics = scorer.fault_metrics(len(parts), log, number)
        assert metrics["reward/exception"] == 8 and metrics["reward/wrong_length"] == 4
        kept = "".join(json.dumps(row) + "\n" for row in log.rows)
        (tmp_path / FAULT_LOG).write_text(kept)
    shown = capsys.readouterr().err
    assert "ValueError: example e0" in shown and "ValueError: example e1" not in shown
    assert shown.count("first fault") == 2 and "[1.0] for 4 completions of example e2" in shown
    of_kinds = [(row["file"], row["step"], row["kind"]) for row in log.rows]
    assert of_kinds == [(FAULT_LOG, 1, "exception"), (FAULT_LOG, 1, "wrong_length")]
    assert "ValueError: example e0" in log.rows[0]["what"]


@pytest.mark.parametrize(
    "value, lost",
    [("raise OSError", 4), ("return [float('nan')] * 4", 4), ("return [None] * 4", 4)]
    + [("return [float('nan'), 0.0, 1.0, 2.0]", 1), ("return [None, None, None, 3.0]", 3)],
)
def test_a_lost_reward_is_null_in_the_log_and_in_no_mean_or_count(tmp_path, value, lost):
    """The first question earns 0, 0, 0, 0, the second 1, 2, 3, 4, the third loses rewards."""
    body = f"if example.id == 'e2':\n        {value}\n"
    body += "    return [0.0] * 4 if example.id == 'e0' else [1.0, 2.0, 3.0, 4.0]"
    found = scored(config(reward=user_file(tmp_path, body)))
    records = completion_records(1, EXAMPLES, found)
    left = [record["reward"] for record in records[8:] if record["reward"] is not None]
    assert [record["reward"] for record in records[8 : 8 + lost]] == [None] * lost
    assert [record["parts"] for record in records[8 : 8 + lost]] == [None] * lost
    assert all(record["advantage"] == 0 for record in records[8 : 8 + lost])
    assert [record["reward"] for record in records[:8]] == [0.0] * 4 + [1.0, 2.0, 3.0, 4.0]
    json.dumps(records, allow_nan=False)  # strict JSON

    metrics = rollout_metrics(found, EXAMPLES, task())
    rewards = torch.tensor([0.0] * 4 + [1.0, 2.0, 3.0, 4.0] + left)
    assert metrics["completions/no_reward_ratio"] == pytest.approx(lost / 12)
    for name in ("reward", "rewards/user/mean"):
        assert metrics[name] == pytest.approx(rewards.mean().item())
    for name in ("reward_std", "rewards/user/std"):
        assert metrics[name] == pytest.approx(rewards.std().item())
    zero_std = [True, False] + [len(set(left)) == 1] * bool(left)
    assert metrics["frac_reward_zero_std"] == pytest.approx(sum(zero_std) / len(zero_std))
    spreads = [0.0, rewards[4:8].std().item()]
    spreads += [torch.tensor(left).std().item()] if len(left) > 1 else []
    assert metrics["reward_std_group"] == pytest.approx(sum(spreads) / len(spreads))


def test_a_step_whose_rewards_are_all_lost_has_no_mean_reward(tmp_path):
    found = scored(config(reward=user_file(tmp_path, "return [None] * 4")))
    metrics = rollout_metrics(found, EXAMPLES, task())
    assert metrics["completions/no_reward_ratio"] == 1.0
    assert not any(name.startswith(("reward", "frac_")) for name in metrics)


def test_with_a_users_reward_the_tasks_own_correctness_is_logged_but_not_paid(tmp_path):
    found = scored(config(reward=user_file(tmp_path, "return [7.0, 0.0, 0.0, 0.0]")))
    unpaid = unpaid_parts(found, EXAMPLES, task())
    metrics = rollout_metrics(found, EXAMPLES, task(), unpaid)
    assert metrics["task/correct/mean"] == 4 / 12 and metrics["reward"] == 7 / 4
    assert "rewards/correct/mean" not in metrics
    records = completion_records(1, EXAMPLES, found, unpaid)
    assert [record["task"]["correct"] for record in records[:4]] == [1, 0, 1, 1]


def test_a_function_cannot_change_the_texts_of_the_rollout(tmp_path):
    texts = list(TEXTS)
    user = UserReward(Workers(user_file(tmp_path, "completions.clear()\n    return [0.0] * 4"), 30))
    user.score([(texts, EXAMPLES[0])])
    assert texts == TEXTS


@pytest.mark.case("I64", "I66", "I67", "I68", "I69", "F19")
@pytest.mark.parametrize(
    "body, fault, what",
    [
        ("while True: pass", "timeout", "--reward_timeout 1 s"),
        ("sum(__import__('itertools').repeat(1, 10**15))", "timeout", "--reward_timeout 1 s"),
        ("import os; os._exit(7)", "died", "code 7"),
        ("import os; os.fork(); return [2.0] * 4", None, ""),  # two processes, one answer
        ("import os; os.kill(os.getpid(), 9)", "died", "code -9"),
        ("import sys; sys.exit('bye')", "exception", "SystemExit: bye"),
        ("raise KeyboardInterrupt", "exception", "KeyboardInterrupt"),
        ("print('x' * 10**7); print('the end'); 1 / 0", "exception", "the end"),
        ("import os; os.write(1, b'z' * 10**7); os.system('echo x'); return [2.0] * 4", None, ""),
        ("return [[1]] * 4", "exception", "TypeError"),
        ("return 3", "exception", "TypeError"),
        ("return ['1.5'] * 4", "exception", "one for each answer, not '1.5'"),
        ("return [float('nan')] * 4", "not_finite", "nan"),
        ("return [1e300] * 4", "not_finite", "1e+300"),
        ("return [1.0] * 5", "wrong_length", "for 4 completions"),
    ],
)
def test_whatever_a_reward_does_it_costs_its_completions_and_no_more(
    tmp_path, capfd, body, fault, what
):
    """The first example is hit, the second is answered by the same worker or by a new one."""
    body = f"if example.id == 'e0':\n        {body}\n    return [1.0] * len(completions)"
    user = UserReward(Workers(user_file(tmp_path, body), 1))
    begun = time.monotonic()
    hit, spared = user.score([(list(TEXTS), EXAMPLES[0]), (list(TEXTS), EXAMPLES[1])])
    assert [reward.total for reward in spared] == [1.0] * 4
    if fault is None:
        assert [reward.total for reward in hit] == [2.0] * 4 and not user.faults
        again = user.score([(list(TEXTS), EXAMPLES[1])] * 3)  # and nothing is left in the pipe
        assert [[reward.total for reward in group] for group in again] == [[1.0] * 4] * 3
    else:
        assert hit == [None] * 4 and user.faults == {fault: 4}
    assert time.monotonic() - begun < 60
    out, err = capfd.readouterr()
    assert what in err and len(out) + len(err) < 5000


@pytest.mark.case("F19")
def test_a_worker_killed_from_outside_is_replaced(tmp_path):
    """As by a system that is short of memory, while it works and while it waits."""
    body = "import time; time.sleep(0.5); return [2.0] * len(completions)"
    before = set(multiprocessing.active_children())
    user = UserReward(Workers(user_file(tmp_path, body), 30))
    (worker,) = set(multiprocessing.active_children()) - before
    question = (TEXTS, EXAMPLES[0])
    threading.Timer(0.3, worker.kill).start()
    hit, spared = user.score([question, question])
    assert hit == [None] * 4 and [reward.total for reward in spared] == [2.0] * 4
    assert user.faults == {"died": 4}
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    time.sleep(1.0)
    (rewards,) = user.score([question])
    assert [reward.total for reward in rewards] == [2.0] * 4 and user.faults == {"died": 4}
    del user
    gc.collect()
    deadline = time.monotonic() + 10
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not set(multiprocessing.active_children()) - before


@pytest.mark.case("F19")
def test_a_worker_that_ends_while_it_waits_costs_a_group_at_most(tmp_path):
    body = "import os, threading, time; threading.Timer(0.05, os._exit, [1]).start()"
    user = UserReward(Workers(user_file(tmp_path, f"{body}; return [1.0] * len(completions)"), 30))
    for wait in (0.0, 0.02, 0.1, 0.3):
        time.sleep(wait)
        groups = user.score([(TEXTS, EXAMPLES[0])] * 3)
        assert sum(rewards == [None] * 4 for rewards in groups) <= 2


@pytest.mark.parametrize("body", ["return [0.0]", "while True: pass"])
def test_a_worker_ends_with_training_idle_or_busy(tmp_path, body):
    program = (
        "import multiprocessing, os\n"
        "from training.reward_worker import Workers, answer\n"
        "from data.examples import Example\n"
        "if __name__ == '__main__':\n"
        f"    workers = Workers({user_file(tmp_path, body)!r}, 30)\n"
        "    workers.pool.schedule(answer, ([], Example('e', (), '?', 't')))\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    os._exit(0)\n"  # as if killed: nobody tidies up
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    pid, deadline = int(done.stdout), time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


RETURNED = {  # code of a reward -> its rewards, or what it is told
    "[1, 2.5, True, None]": [1.0, 2.5, 1.0, None],
    "(1, 2, 3, 4)": [1.0, 2.0, 3.0, 4.0],
    "np.arange(4)": [0.0, 1.0, 2.0, 3.0],
    "np.arange(4, dtype=np.float16)": [0.0, 1.0, 2.0, 3.0],
    "torch.ones(4, dtype=torch.bfloat16)": [1.0] * 4,
    "torch.ones(4, requires_grad=True)": [1.0] * 4,
    "[torch.tensor(2.0)] * 4": [2.0] * 4,
    "[np.float32(2)] * 4": [2.0] * 4,
    "dict(a=1, b=2, c=3, d=4)": "not dict",
    "{1, 2, 3, 4}": "not set",
    "'1234'": "not str",
    "b'1234'": "not bytes",
    "bytearray(4)": "not bytearray",
    "(n for n in range(4))": "not generator",
    "range(4)": "not range",
    "map(len, completions)": "not map",
    "zip('ab', 'cd')": "not zip",
    "{1: 2}.values()": "not dict_values",
    "frozenset({1, 2, 3, 4})": "not frozenset",
    "3.0": "not float",
    "np.float64(3)": "not float",
    "torch.tensor(3.0)": "not float",
    "['1.5'] * 4": "not '1.5'",
    "[b'1'] * 4": "not b'1'",
    "np.array(['1', '2', '3', '4'])": "not '1'",
    "np.ones((4, 1))": "one for each answer, not [1.0]",
    "torch.ones(4, 1)": "one for each answer, not [1.0]",
    "[{'score': 1}] * 4": "not {'score': 1}",
    "[1j] * 4": "not 'complex'",
    "[10**400] * 4": "too large",
}


@pytest.mark.parametrize("returned", RETURNED)
def test_what_a_reward_may_return_is_numbers_in_order_and_all_else_is_refused_by_name(returned):
    names = {"np": np, "torch": torch, "completions": TEXTS}
    value, expected = eval(returned, names), RETURNED[returned]
    if isinstance(expected, list):
        assert numbers(value) == expected
        return
    with pytest.raises((TypeError, OverflowError)) as refusal:
        numbers(value)
    assert expected in str(refusal.value)


@pytest.mark.parametrize(
    "spec, why",
    [
        ("", "path/to/file.py:function"),
        ("mine.py", "path/to/file.py:function"),
        ("mine:pay", "path/to/file.py:function"),
        ("mine.py:", "path/to/file.py:function"),
        ("/nowhere/mine.py:pay", "no such file"),
    ],
)
def test_a_reward_that_cannot_be_found_is_refused_by_flag(spec, why):
    with pytest.raises(InputError, match=f"--reward.*{why}"):
        Workers(spec, 30)


@pytest.mark.parametrize(
    "source, why",
    [("pay = 3", "has no function 'pay'"), ("1 / 0", "importing it fails .ZeroDivisionError")]
    + [("def pay(:", "importing it fails .SyntaxError")]
    + [("def pay(completions): return [1]", "cannot be called as pay.completions, example.")]
    + [("def pay(a, b, c): return [1]", "cannot be called as pay.completions, example.")]
    + [("def pay(*, completions, example): return [1]", "cannot be called as")]
    + [("async def pay(completions, example): return [1]", "pay is async")]
    + [("class pay: pass", "cannot be called as")]
    + [("import nowhere", "importing it fails .ModuleNotFoundError")]
    + [("x = '\x00'", "importing it fails .SyntaxError")]
    + [("raise SystemExit", "importing it fails .SystemExit")]
    + [("import os; os._exit(3)", "importing it ends its process")]
    + [("import os; os._exit(0)", "importing it ends its process")]
    + [("import time; time.sleep(100)", "importing it .* takes longer than 2 s")]
    + [("import re; re.match('(a+)+b', 'a' * 60)", "importing it .* takes longer than 2 s")],  # C
)
def test_a_file_without_a_usable_function_is_refused_by_flag(tmp_path, monkeypatch, source, why):
    if why.startswith("importing it") and "fails" not in why:  # the others need not wait
        monkeypatch.setattr(reward_worker, "START_SECONDS", 2)
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(InputError, match=f"--reward.*{why}"):
        Workers(f"{tmp_path / 'mine.py'}:pay", 30)


def test_a_reward_is_refused_before_the_data_and_the_model_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(train_grpo, "prepare", lambda *_: pytest.fail("has begun"))
    for spec in ("", f"{tmp_path}/gone.py:pay", user_file(tmp_path, "return [1.0").strip()):
        with pytest.raises(InputError, match="--reward"):
            train_grpo.main(["--reward", spec, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_workers_keep_the_code_that_the_run_began_with(tmp_path):
    """The file is edited, and a worker that has died is replaced."""
    spec = user_file(tmp_path, "return [1.0] * len(completions)")
    before = set(multiprocessing.active_children())
    user = UserReward(Workers(spec, 30))
    user_file(tmp_path, "return [-9.0] * len(completions)")
    for worker in set(multiprocessing.active_children()) - before:
        worker.kill()
    time.sleep(0.5)
    groups = user.score([(TEXTS, EXAMPLES[0])] * 3)
    assert {reward.total for group in groups for reward in group if reward} == {1.0}


def test_a_file_that_the_reward_imports_may_not_change_during_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "worth.py").write_text("VALUE = 1.0\n")
    spec = user_file(tmp_path, "import worth\n    return [1.0] * len(completions)")
    path = tmp_path / "mine.py"
    path.write_text("import numpy, rewards, tasks.loose, worth\n" + path.read_text())
    before = set(multiprocessing.active_children())
    user = UserReward(Workers(spec, 30))
    assert [*user.workers.fingerprint["imports"]] == ["worth.py"]
    (tmp_path / "worth.py").write_text("VALUE = -9.0\n")
    for worker in set(multiprocessing.active_children()) - before:
        worker.kill()
    with pytest.raises(InputError, match="worth.py, which it imports, has changed"):
        for _ in range(20):
            time.sleep(0.1)
            user.score([(TEXTS, EXAMPLES[0])] * 3)
