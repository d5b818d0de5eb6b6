"""The algorithm: loss, normalisers, advantages, skipping, accumulation, data order, and learning.

The identities that GRPO must satisfy are tested as identities, and a tiny random model must learn
a toy reward in seconds. tests/robustness/test_oracles.py compares the loss, its gradient, and any
cut of a step into micro-batches with loops over Python floats.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch

from data.examples import Example
from kernels import group_advantages
from model.processor import Processor
from model.weights import load_model
from reporting.metrics import rollout_metrics
from rewards import Reward
from sample import Rollout, generate_group
from tasks.task import Task
from tests.helpers import backward, make_groups
from tests.model.test_shared_prefix import gradients, some_groups
from train_grpo import GRPOConfig, grpo_loss, kl_k3, policy_loss, token_weights
from training.batches import places_of_step, questions_at
from training.micro_batches import MicroBatches, mean_metrics, merge_pass_metrics
from training.optimizer import Optimizer
from training.scoring import Scorer

LENGTHS = [3, 1, 4, 2]  # two groups of two
MASK_OF = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))


# ---- the loss ------------------------------------------------------------------------------------


@pytest.mark.case("O3")
def test_clipping_stops_the_push_in_the_direction_of_the_advantage_only():
    logp = torch.zeros(4, requires_grad=True)
    old = torch.log(torch.tensor([1 / 1.5, 1 / 1.5, 1 / 0.5, 1 / 0.5]))  # ratios 1.5 1.5 0.5 0.5
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, stats = grpo_loss(logp, old, None, advantage, torch.ones(4), GRPOConfig())
    loss.backward()
    assert torch.allclose(logp.grad, torch.tensor([0.0, 1.5, -0.5, 0.0]))
    assert stats["clip_ratio/high_mean"] == 1 and stats["clip_ratio/low_mean"] == 1


@pytest.mark.case("O3")
def test_the_kl_estimate_is_never_negative_zero_only_where_equal_and_unbiased():
    assert kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0])) == 0
    apart = torch.linspace(-80, 80, 33)
    values = kl_k3(torch.zeros(33), apart)
    assert torch.isfinite(values).all() and (values[apart != 0] > 0).all()
    p, q = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.5, 0.5]).double()
    expectation = (p * kl_k3(p.log(), q.log())).sum()
    assert expectation.item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-12)


@pytest.mark.parametrize("loss_type, total", [("grpo", 1.0), ("dapo", 1.0), ("dr_grpo", 10 / 32)])
def test_token_weights_sum_to_what_the_loss_type_says(loss_type, total):
    weights = token_weights(LENGTHS, loss_type, 8)
    assert len(weights) == 10 and weights.sum().item() == pytest.approx(total)
    if loss_type == "grpo":  # every completion counts the same, however long
        sums = torch.zeros(4).index_add(0, MASK_OF, weights)
        assert torch.allclose(sums, torch.full((4,), 0.25))


# ---- one update ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    return load_model(tiny_dir), Processor(tiny_dir)


def groups_of(prompts, completions, cfg, zero_std=()):
    """Groups with made-up rewards; the groups in `zero_std` get equal ones."""
    rewards = torch.rand(len(prompts), 4, generator=torch.Generator().manual_seed(5))
    for n in zero_std:
        rewards[n] = 0.5
    ids = [c for group in completions for c in group]
    logps = [torch.full((len(c),), -4.0) for c in ids]
    rollout = Rollout(ids, logps, ["stop"] * len(ids), [""] * len(ids))
    return make_groups(prompts, rollout, group_advantages(rewards), cfg)


def load_model_copy(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.05)
    return other.requires_grad_(False)


@pytest.mark.case("O3")
def test_zero_std_groups_have_exactly_no_gradient_and_skipping_them_changes_nothing(tiny):
    model, processor = tiny
    cfg = GRPOConfig(num_generations=4, max_completion_length=40)
    prompts, completions = some_groups(processor)
    flat = groups_of(prompts, completions, cfg, zero_std=(0, 1, 2))
    # computed in full (a KL of weight zero keeps the groups in): exactly zero
    reference = load_model_copy(model)
    backward(model, reference, flat, processor.suppressed_tokens, cfg)
    assert all(not g.any() for g in gradients(model).values())
    # skipped: no forward at all
    metrics = mean_metrics([backward(model, None, flat, processor.suppressed_tokens, cfg)])
    assert gradients(model) == {} and metrics == {"loss": 0.0}

    mixed = groups_of(prompts, completions, cfg, zero_std=(1,))
    backward(model, None, mixed, processor.suppressed_tokens, cfg)
    skipped = gradients(model)
    backward(model, reference, mixed, processor.suppressed_tokens, cfg)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, skipped[name], atol=1e-6 * float(gradient.abs().max()))


@pytest.mark.case("O17")
def test_an_optimizer_step_equals_torch_adamw_with_clipping(tiny):
    model, processor = tiny
    cfg = GRPOConfig(num_generations=4, max_completion_length=40, learning_rate=1e-3)
    cfg = replace(cfg, weight_decay=0.1, max_grad_norm=0.01)
    groups = groups_of(*some_groups(processor), cfg)
    twin = load_model_copy(model).requires_grad_(True)
    with torch.no_grad():
        for p, q in zip(twin.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    ours, theirs = (
        Optimizer(model, cfg),
        torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1),
    )
    for step in range(3):
        backward(model, None, groups, processor.suppressed_tokens, cfg)
        backward(twin, None, groups, processor.suppressed_tokens, cfg)
        ours.clip_grad_norm(cfg.max_grad_norm)
        metrics = ours.step(progress=step / 3)
        theirs.param_groups[0]["lr"] = 1e-3 * (1 - step / 3)
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
        theirs.step()
        theirs.zero_grad()
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-6), name
        assert name.startswith("visual") or not torch.equal(p, start[name]), name
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start[name])


@pytest.mark.case("F15")
def test_where_memory_runs_out_half_the_micro_batch_gives_the_same_gradient(tiny, capsys):
    """Packs of more than one group fail, late in a backward that has begun to add up."""
    model, processor = tiny
    suppressed = processor.suppressed_tokens
    cfg = GRPOConfig(num_generations=4, max_completion_length=40, groups_per_micro_batch=8)
    prompts, completions = some_groups(processor)
    groups = groups_of(prompts, completions, cfg)
    alone = replace(cfg, groups_per_micro_batch=1)
    expected_totals = backward(model, None, groups, suppressed, alone)
    expected = gradients(model)
    micro_batches = MicroBatches(model, Optimizer(model, cfg), cfg)
    for batch in micro_batches.split(groups):
        with micro_batches.retry_on_oom():
            loss, stats = policy_loss(model, None, batch, suppressed, cfg)
            loss.backward()
            micro_batches.add(stats)
            if len(batch.pack.prompts) > 1:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    assert micro_batches.size == 1 and micro_batches.totals == expected_totals
    assert "--groups_per_micro_batch 4\n" in capsys.readouterr().err
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.case("F15")
@pytest.mark.parametrize(
    "error, size, fsdp",
    [
        (MemoryError(), 1, False),
        (RuntimeError("out of memory"), 1, False),
        (RuntimeError("shapes do not match"), 8, False),
        (RuntimeError("out of memory"), 8, True),  # the others are in the same forward
    ],
)
def test_what_a_smaller_micro_batch_cannot_help_passes(tiny, error, size, fsdp):
    cfg = GRPOConfig(groups_per_micro_batch=size, fsdp=fsdp)
    micro_batches = MicroBatches(tiny[0], None, cfg)
    with pytest.raises(type(error)), micro_batches.retry_on_oom():
        raise error
    assert micro_batches.size == size and not micro_batches.restart


def test_a_bfloat16_model_accumulates_steps_that_bfloat16_cannot_store(tiny_dir):
    model = load_model(tiny_dir, torch.bfloat16)
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    optimizer = Optimizer(model, GRPOConfig(learning_rate=1e-5, lr_scheduler_type="constant"))
    for _ in range(100):  # each step is far below half a bfloat16 step of a weight of 0.1
        sum(0.01 * p.sum() for p in model.parameters()).backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step(0.0)
    moved = (before - weight).float()[before.abs() > 0.05]
    assert 0.8e-3 < moved.mean() < 1.2e-3 and weight.dtype == torch.bfloat16


def test_bfloat16_gradients_of_micro_batches_add_up_in_float32(tiny_dir):
    model = load_model(tiny_dir, torch.bfloat16)
    optimizer, weight = Optimizer(model, GRPOConfig()), model.model.norm.weight
    pairs = zip(optimizer.parameters, optimizer.masters, strict=True)
    master = next(master for parameter, master in pairs if parameter is weight)
    for value in (1.0, *[2**-10] * 64):  # in bfloat16, 1 + 2^-10 is 1
        (weight * value).sum().backward()
    assert weight.grad is None and master.grad.dtype == torch.float32
    assert torch.equal(master.grad, torch.full_like(master, 1 + 64 * 2**-10))


def test_an_update_that_is_not_finite_is_skipped_counted_and_named(tiny_dir):
    model = load_model(tiny_dir)
    optimizer = Optimizer(model, GRPOConfig(learning_rate=1e-2))
    before = [p.clone() for p in model.parameters()]
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        model.model.norm.weight.grad[0] = float("nan")
        assert math.isnan(optimizer.clip_grad_norm(1.0))
        assert optimizer.step(0.0)["steps_skipped_nonfinite"] == 1.0
        assert optimizer.not_finite == ["model.norm.weight"]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.clip_grad_norm(1.0)
    assert optimizer.step(0.0)["steps_skipped_nonfinite"] == 0.0


def test_a_step_counts_the_skipped_updates_of_all_its_passes():
    passes = [
        {"loss": 1.0, "sampling/sampling_logp_difference/mean": 0.1, "steps_skipped_nonfinite": 1},
        {"loss": 2.0, "sampling/sampling_logp_difference/mean": 0.9, "steps_skipped_nonfinite": 0},
    ]
    assert merge_pass_metrics(passes) == {
        "loss": 2.0,
        "sampling/sampling_logp_difference/mean": 0.1,
        "steps_skipped_nonfinite": 1,
    }


# ---- a step's data and rewards -------------------------------------------------------------------


def some_examples(count):
    return [Example(f"e{i}", (), "?", f"t{i}") for i in range(count)]


def test_every_epoch_meets_every_example_once_in_its_own_order():
    cfg, examples = GRPOConfig(prompts_per_step=4), some_examples(12)
    epochs = [
        [
            e.id
            for step in range(3 * k, 3 * k + 3)
            for _, e in questions_at(examples, places_of_step(step, cfg), cfg)
        ]
        for k in range(3)
    ]
    assert all(sorted(epoch) == sorted(e.id for e in examples) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = [e.id for _, e in questions_at(examples, places_of_step(0, cfg), replace(cfg, seed=1))]
    assert other != epochs[0][:4]


@pytest.mark.case("I21")
def test_a_step_larger_than_the_data_draws_other_numbers_for_repeated_examples():
    chosen = questions_at(some_examples(3), range(8), GRPOConfig(prompts_per_step=8))
    keys = [key for key, _ in chosen]
    assert len(set(keys)) == 8 and {e.id for _, e in chosen} == {"e0", "e1", "e2"}


def test_rewards_are_grouped_by_prompt_and_targets_belong_to_their_group():
    def reward(text, example, weights, dense):
        return Reward(float(text == example.target), {"correct": float(text == example.target)})

    task = Task("fake", [], {}, reward, lambda *_: {})
    texts = ["t0", "t1", "t0", "t1"]  # two prompts, two completions each
    rollout = Rollout([torch.zeros(1)] * 4, [torch.zeros(1)] * 4, ["stop"] * 4, texts)
    scorer = Scorer(task, GRPOConfig(num_generations=2, max_completion_length=8))
    rollout.rewards, rollout.parts = scorer.score(some_examples(2), rollout, 0)
    assert rollout.rewards.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    metrics = rollout_metrics(rollout, some_examples(2), task)
    assert metrics["reward"] == 0.5 and metrics["frac_reward_zero_std"] == 0.0
    assert metrics["rewards/correct/mean"] == 0.5 and metrics["completions/clipped_ratio"] == 0.0
    assert metrics["reward_std_group"] == pytest.approx(math.sqrt(0.5))


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.case("O23")
def test_a_random_model_learns_a_toy_reward(tiny_dir):
    """Half of all tokens are paid. A sign error anywhere drives the reward down, not up."""
    model, processor = load_model(tiny_dir), Processor(tiny_dir)
    prompts, _ = some_groups(processor)
    cfg = GRPOConfig(
        learning_rate=1e-2,
        num_generations=8,
        max_completion_length=8,
        max_steps=40,
        loss_type="dr_grpo",
    )
    optimizer, means = Optimizer(model, cfg), []
    for step in range(cfg.max_steps):
        rollout = generate_group(model, processor, prompts, 8, 8, seed=0, step=step)
        paid = torch.tensor([(ids % 2 == 0).float().mean() for ids in rollout.ids]).view(3, 8)
        groups = make_groups(prompts, rollout, group_advantages(paid), cfg)
        backward(model, None, groups, processor.suppressed_tokens, cfg)
        optimizer.clip_grad_norm(cfg.max_grad_norm)
        optimizer.step(step / cfg.max_steps)
        means.append(paid.mean().item())
    assert sum(means[:3]) / 3 < 0.65 and sum(means[-3:]) / 3 > 0.9, means


@pytest.mark.case("O8")
def test_the_update_reports_how_far_sampling_and_training_differ(tiny):
    model, processor = tiny
    prompts, _ = some_groups(processor)
    cfg = GRPOConfig(num_generations=4, max_completion_length=8)
    rollout = generate_group(model, processor, prompts, 4, 8)
    rewards = torch.rand(3, 4)
    groups = make_groups(prompts, rollout, group_advantages(rewards), cfg)
    metrics = mean_metrics([backward(model, None, groups, processor.suppressed_tokens, cfg)])
    gradients(model)
    assert 0 <= metrics["sampling/sampling_logp_difference/mean"] < 1e-5
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0
    assert 0 < metrics["entropy"] < math.log(320)
    # at ratio 1 the loss is minus the weighted mean of advantages, near 0 whatever was learned
    assert abs(metrics["loss"]) < 1
