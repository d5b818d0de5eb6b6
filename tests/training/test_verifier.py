"""Guarantees of verifiers: where a score is read, what it learns, how its quality is measured."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train_verifier
from config import BASE_MODEL, given_flags
from model.load import load_model, load_processor
from model.pack import make_pack
from model.scored import ScoredVLM
from runtime.errors import InputError
from sample import Rollout, generate_group
from tasks import TASKS, load_task
from tests.helpers import pay_odd_lengths, rows
from tests.model.test_shared_prefix import some_groups
from train_grpo import GRPOConfig
from train_grpo import main as train_grpo_main
from training.learned_reward import LearnedReward
from training.search import Sampling, choose, completion_scores
from training.verifier import (
    Labelled,
    auc,
    calibration_error,
    ends,
    fingerprint,
    group_loss,
    load_verifier,
    preference_loss,
    quality,
    save_verifier,
    scores_of,
    verifier_loss,
    what_is_read,
)


@pytest.fixture(scope="module")
def scored(tiny_dir) -> ScoredVLM:
    """A random verifier."""
    model = ScoredVLM(load_model(tiny_dir))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model.requires_grad_(False)


# ---- losses --------------------------------------------------------------------------------------


def test_a_verifier_says_log_odds():
    scores, labels = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, 0.0])
    expected = math.log(2) - math.log(1 / (1 + math.exp(-2))) - math.log(1 - 1 / (1 + math.e))
    assert float(verifier_loss(scores, labels)) == pytest.approx(expected, rel=1e-6)


def test_a_preference_is_the_sigmoid_of_a_difference_and_a_tie_is_half_of_each():
    first, second = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 3.0])
    losses = [
        math.log(1 + math.exp(-1)),  # the first is chosen, and better
        math.log(1 + math.exp(2)),  # the first is chosen, and worse
        math.log(2),  # a tie of equals
    ]
    labels = torch.tensor([1.0, 1.0, 0.5])
    assert float(preference_loss(first, second, labels, 0.0)) == pytest.approx(sum(losses))
    centred = preference_loss(first, second, labels, 0.1)
    assert float(centred) - sum(losses) == pytest.approx(0.1 * (1 + 4 + 36), rel=1e-5)


def test_bradley_and_terry_find_the_strengths_that_comparisons_came_from():
    strengths = torch.tensor([1.5, 0.5, -0.5, -1.5], dtype=torch.float64)
    pairs = torch.combinations(torch.arange(4), 2).repeat(3000, 1)  # (m, 2)
    odds = (strengths[pairs[:, 0]] - strengths[pairs[:, 1]]).sigmoid()
    labels = torch.bernoulli(odds, generator=torch.Generator().manual_seed(0))
    found = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        loss = preference_loss(found[pairs[:, 0]], found[pairs[:, 1]], labels, 1e-4) / len(pairs)
        (gradient,) = torch.autograd.grad(loss, found)
        with torch.no_grad():
            found -= 2 * gradient
    assert torch.allclose(found.detach() - found.mean().detach(), strengths, atol=0.1)


# ---- quality -------------------------------------------------------------------------------------


def test_auc_is_the_share_of_pairs_in_the_right_order_and_ties_count_half():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (60,), generator=generator).float()
    labels = torch.randint(0, 2, (60,), generator=generator).float()
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[labels == 1].tolist()
        for b in scores[labels == 0].tolist()
    ]
    assert auc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(labels, labels) == 1.0 and auc(-labels, labels) == 0.0
    assert math.isnan(auc(scores, torch.ones(60)))


def test_calibration_compares_what_is_said_with_what_is_so():
    said = torch.tensor([0.9] * 10 + [0.2] * 10).logit()
    exact = torch.tensor([1.0] * 9 + [0.0] + [1.0] * 2 + [0.0] * 8)
    assert calibration_error(said, exact) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(said, torch.zeros(20)) == pytest.approx(0.55)


# ---- where scores are read -----------------------------------------------------------------------


def labelled(scored, tiny_dir) -> list[Labelled]:
    prompts, completions = some_groups(load_processor(tiny_dir))
    return [
        Labelled(prompt, group, ends(group), torch.ones(len(group)))
        for prompt, group in zip(prompts, completions, strict=True)
    ]


def test_the_score_of_a_completion_is_that_of_the_state_before_its_last_token(scored, tiny_dir):
    for group, scores in zip(
        labelled(scored, tiny_dir), scores_of(scored, labelled(scored, tiny_dir)), strict=True
    ):
        for tokens, score in zip(group.ids, scores, strict=True):
            alone = scored(make_pack([group.prompt], [[tokens]]))
            assert float(score) == pytest.approx(float(alone[-1]), abs=2e-5)


def test_the_last_token_itself_changes_no_score(scored, tiny_dir):
    groups = labelled(scored, tiny_dir)
    before = torch.cat(scores_of(scored, groups))
    for group in groups:
        group.ids = [torch.cat((ids[:-1], torch.tensor([7]))) for ids in group.ids]
    assert torch.allclose(torch.cat(scores_of(scored, groups)), before, atol=1e-5)


def test_pairs_are_compared_by_their_scores(scored, tiny_dir):
    group = labelled(scored, tiny_dir)[0]
    group.pairs, group.labels = torch.tensor([[0, 1], [2, 0]]), torch.tensor([1.0, 0.5])
    (scores,) = scores_of(scored, [group])
    expected = preference_loss(scores[[0, 2]], scores[[1, 0]], group.labels)
    assert torch.equal(group_loss(scores, group), expected)
    metrics = quality(scored, [group], size=4)
    assert metrics["n"] == 1 and metrics["accuracy"] == float(scores[0] > scores[1])


# ---- a directory ---------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(scored, tiny_dir, tmp_path):
    save_verifier(scored, tmp_path / "v", tiny_dir, {"labels": "outcome"})
    other, about = load_verifier(tmp_path / "v", torch.float32, "cpu")
    groups = labelled(scored, tiny_dir)
    for ours, theirs in zip(scores_of(scored, groups), scores_of(other, groups), strict=True):
        assert torch.equal(ours, theirs)
    assert about["labels"] == "outcome"
    before = fingerprint(tmp_path / "v")
    with torch.no_grad():
        other.score.bias.add_(1.0)
    save_verifier(other, tmp_path / "v", tiny_dir, {})
    assert fingerprint(tmp_path / "v") != before


def test_a_verifier_of_another_model_is_refused(tiny_dir, scored, tmp_path):
    save_verifier(scored, tmp_path / "v", tiny_dir, {})
    load_verifier(tmp_path / "v", torch.float32, "cpu", policy=tiny_dir)
    with pytest.raises(InputError, match=r"policy .*, tokenizer\.json differs.*train one with"):
        load_verifier(tmp_path / "v", torch.float32, "cpu", policy=BASE_MODEL)


def test_what_is_no_verifier_is_refused_with_the_fix(tiny_dir, scored, tmp_path):
    with pytest.raises(InputError, match=r"train_verifier\.py makes one"):
        load_verifier(tiny_dir, torch.float32, "cpu")
    save_verifier(scored, tmp_path / "v", tiny_dir, {})
    (tmp_path / "v" / "score.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"score\.safetensors"):
        load_verifier(tmp_path / "v", torch.float32, "cpu")


# ---- the script ----------------------------------------------------------------------------------


@pytest.fixture
def flags(tiny_dir, monkeypatch):
    monkeypatch.setattr(TASKS["count"], "load", pay_odd_lengths(TASKS["count"].load))
    line = f"--task count --model {tiny_dir} --max_steps 3 --train_size 8 --held_out_size 4"
    line += " --prompts_per_step 2 --num_generations 3 --max_completion_length 10 --device cpu"
    return [*line.split(), "--learning_rate", "1e-2"]


def ratings_of(path, ids: list[str]) -> None:
    """A file as rate.py writes it, by a simulated rater who likes short texts."""
    pairs = [(f"<answer>{k}</answer>", f"<answer>{k} flowers, I think</answer>") for k in range(3)]
    lines = []
    for n, id in enumerate(ids):
        for short, long in pairs:
            texts, choice = ([short, long], "left") if n % 2 else ([long, short], "right")
            row = {"kind": "pair", "id": id, "step": 1, "texts": texts, "choice": choice}
            lines.append(json.dumps(row | {"rater": "simulated"}) + "\n")
    path.write_text("".join(lines))


def test_a_verifier_of_outcomes_is_trained_saved_and_says_how_good_it_is(flags, tmp_path, capsys):
    train_verifier.main([*flags, "--output_dir", str(tmp_path / "v")])
    about = json.loads((tmp_path / "v" / "verifier.json").read_text())
    assert about["labels"] == "outcome" and about["task"] == "count"
    for split in ("held_out", "ood"):
        assert about["quality"][split]["n"] == 12
        measured = {"n", "accuracy", "base_rate", "auc", "calibration_error"}
        assert about["quality"][split].keys() == measured
    model, _ = load_verifier(tmp_path / "v", torch.float32, "cpu")
    assert model.score.weight.any() and "outcome held_out" in capsys.readouterr().out


def test_a_reward_learned_from_ratings_is_paid_beside_the_rule(flags, tmp_path, capsys):
    ids = [e.id for e in train_verifier_task(flags).train]
    ratings_of(tmp_path / "ratings.jsonl", ids)
    words = [*flags, "--labels", "preference", "--ratings", str(tmp_path / "ratings.jsonl")]
    words += ["--max_steps", "30"]
    train_verifier.main([*words, "--output_dir", str(tmp_path / "v")])
    about = json.loads((tmp_path / "v" / "verifier.json").read_text())
    assert about["quality"]["held_out"] == {"n": 6, "accuracy": 1.0, "base_rate": 0.5}
    assert about["scale"]["std"] > 0
    more = ["--reward_model", str(tmp_path / "v"), "--reward_model_weight", "0.5"]
    line = [*flags, "--max_steps", "2", "--report_prompts", "1", *more]
    train_grpo_main([*line, "--output_dir", str(tmp_path / "run")])
    assert "0.5 x learned" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for row in rows(tmp_path / "run" / "completions.jsonl"):
        rule = row["parts"]["correct"] + 0.5 * row["parts"]["format"]
        assert row["reward"] == pytest.approx(rule + 0.5 * row["parts"]["learned"], abs=1e-4)
    capsys.readouterr()
    base = Path(flags[3])
    save_verifier(ScoredVLM(load_model(base)), tmp_path / "v", base, about)
    resume = ["--resume_from_checkpoint", str(tmp_path / "run"), "--max_steps", "3"]
    with pytest.raises(InputError, match="the reward model has changed"):
        train_grpo_main(resume)


def train_verifier_task(flags):
    cfg = train_verifier.VerifierConfig(**given_flags(train_verifier.VerifierConfig, flags, ""))
    return load_task(cfg, load_processor(cfg.model))


@pytest.fixture
def solver_dir(tiny_dir, tmp_path) -> Path:
    """Another model than the policy."""
    directory = shutil.copytree(tiny_dir, tmp_path / "solver")
    tensors = load_file(directory / "model.safetensors")
    save_file({k: 1.5 * v for k, v in tensors.items()}, directory / "model.safetensors")
    return directory


def test_a_solver_answers_first_and_the_verifier_reads_it(flags, tiny_dir, solver_dir, tmp_path):
    """Its scores are those of prompts that go on with what the solver alone says greedily; so they
    are as a reward, and a search counts the tokens."""
    words = [*flags, "--solver", str(solver_dir), "--output_dir", str(tmp_path / "v")]
    train_verifier.main(words)
    verifier, about = load_verifier(tmp_path / "v", torch.float32, "cpu", tiny_dir)
    assert about["solver"] == {"model": str(solver_dir), "max_completion_length": 10}
    processor, task = load_processor(tiny_dir), train_verifier_task(flags)
    examples = task.splits["held_out"][:2]
    prompts = [processor.prompt(e.id, e.images, e.question) for e in examples]
    said = [
        generate_group(load_model(solver_dir), processor, [p], 1, 10, 0.0).ids[0] for p in prompts
    ]
    other = generate_group(load_model(tiny_dir), processor, prompts, 1, 10, 0.0).ids
    assert any(not torch.equal(a, b) for a, b in zip(said, other, strict=True))
    ids = [torch.tensor([*processor.encode(f"<answer>{k}</answer>"), processor.end_ids[0]])
           for k in range(4)]  # fmt: skip
    scores = completion_scores(verifier, what_is_read(verifier, prompts), ids)
    for n, prompt in enumerate(prompts):
        for k, tokens in enumerate(ids[2 * n : 2 * n + 2]):
            after = torch.cat((said[n], tokens))
            pack = make_pack([prompt], [[after]])
            assert scores[n, k].item() == pytest.approx(verifier(pack)[-1].item(), abs=1e-5)
    assert not torch.equal(scores, completion_scores(verifier, prompts, ids))
    cfg = GRPOConfig(task="count", model=tiny_dir, reward_model=tmp_path / "v")
    rollout = Rollout(ids, [], [], [], rewards=torch.zeros(2, 2), parts=[{} for _ in ids])
    LearnedReward(cfg, torch.device("cpu")).add_to(rollout, prompts)
    torch.testing.assert_close(rollout.rewards, cfg.reward_model_weight * scores.sigmoid())
    sampling = Sampling(load_model(tiny_dir), processor, 10, 1.0, 0)
    chosen = choose(sampling, task, prompts, examples, 4, "best", verifier)
    verifier.solver = None
    plain = choose(sampling, task, prompts, examples, 4, "best", verifier)
    for n, prompt in enumerate(prompts):
        more = chosen[n].computed - plain[n].computed
        assert more == len(prompt.ids) + 2 * len(said[n])


@pytest.mark.parametrize("tower", ["--freeze_vision", "--no-freeze_vision"])
def test_what_is_learnt_from_is_what_is_read_later(flags, tiny_dir, solver_dir, tower):
    words = [*flags, "--solver", str(solver_dir), tower]
    kind = train_verifier.VerifierConfig
    setup = train_verifier.prepare(kind(**given_flags(kind, words, "")))
    source, processor = train_verifier.Sampled(setup), load_processor(tiny_dir)
    by_id = {e.id: e for e in setup.task.train}
    for group in source.of_step(0):
        e = by_id[group.prompt.id.partition("@")[0]]
        (read,) = source.solver([processor.prompt(e.id, e.images, e.question)])
        assert torch.equal(group.prompt.ids, read.ids) and read.said > 0


def test_a_solver_that_has_changed_or_gone_is_noticed(flags, solver_dir, tmp_path):
    train_verifier.main([*flags, "--solver", str(solver_dir), "--output_dir", str(tmp_path / "v")])
    before = fingerprint(tmp_path / "v")
    weights = solver_dir / "model.safetensors"
    save_file({k: -v for k, v in load_file(weights).items()}, weights)
    assert fingerprint(tmp_path / "v") != before
    shutil.rmtree(solver_dir)
    with pytest.raises(InputError, match='its solver .*solver is gone; correct "solver" in'):
        load_verifier(tmp_path / "v", torch.float32, "cpu")


def test_a_solver_that_reads_other_tokens_is_refused(flags, solver_dir):
    path = solver_dir / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match="reads otherwise than the policy.*tokenizer.json differs"):
        train_verifier.main([*flags, "--solver", str(solver_dir)])


@pytest.mark.parametrize(
    "more, said",
    [
        ("--labels process --solver x", "--solver x: must be left out but for --labels outcome"),
        ("--labels preference", "--ratings None: must be given"),
        ("--ratings x.jsonl", "--ratings x.jsonl: must be taken with --labels preference"),
        ("--fsdp", "--fsdp"),
        ("--resume_from_checkpoint latest", "--resume_from_checkpoint"),
        ("--temperature 0", "--temperature"),
        ("--save_steps 5", "--save_steps 5: must be left out"),
    ],
)
def test_impossible_settings_are_refused_by_name(flags, more, said):
    with pytest.raises(InputError, match=said):
        train_verifier.main([*flags, *more.split()])


def test_ratings_of_other_questions_are_refused(flags, tmp_path):
    ratings_of(tmp_path / "ratings.jsonl", ["another", "third"])
    words = [*flags, "--labels", "preference", "--ratings", str(tmp_path / "ratings.jsonl")]
    with pytest.raises(InputError, match="0 of its 2 questions are among the task's"):
        train_verifier.main(words)
