"""What can only be tested on a GPU: recorded steps, the flash kernel for sequences, a bf16 step.

The kernels have their own tests, which run compiled there. Skipped without a GPU.
"""

import pytest
import torch

import sample
from benchmarks.speed.workload import garden_prompts
from config import BASE_MODEL
from kernels import group_advantages
from model import attention, language
from model.pack import completion_logps, make_pack
from model.processor import Processor
from model.weights import load_model
from sample import generate_group
from tests.helpers import backward, make_groups
from train_grpo import GRPOConfig
from training.micro_batches import mean_metrics
from training.optimizer import Optimizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request):
    return load_model(BASE_MODEL, request.param, "cuda")


@pytest.fixture
def groups():
    """Three questions about flowers with ragged completions."""
    generator = torch.Generator().manual_seed(0)
    completions = [
        [torch.randint(20, 900, (n,), generator=generator) for n in (3, 1, 40, 7 + k)]
        for k in range(3)
    ]
    return garden_prompts(Processor(BASE_MODEL), 3), completions


def test_a_recorded_step_draws_the_same_tokens(model, groups, monkeypatch):
    recorded, record = [], sample.Recorder.record
    monkeypatch.setattr(
        sample.Recorder, "record", lambda self, step: recorded.append(step) or record(self, step)
    )
    processor = Processor(BASE_MODEL)
    replayed = generate_group(model, processor, groups[0], 4, 30)
    assert recorded
    monkeypatch.setattr(sample, "STEPS_BEFORE_GRAPH", 10**9)
    count = len(recorded)
    eager = generate_group(model, processor, groups[0], 4, 30)
    assert len(recorded) == count
    assert all(torch.equal(a, b) for a, b in zip(replayed.ids, eager.ids, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(replayed.logps, eager.logps, strict=True))


def test_groups_that_ended_leave_a_recorded_rollout(model, groups, monkeypatch):
    left, keep = [], sample.Decoder.keep
    monkeypatch.setattr(
        sample.Decoder, "keep", lambda self, groups: (left.append(len(groups)), keep(self, groups))
    )
    processor = Processor(BASE_MODEL)
    monkeypatch.setattr(processor, "end_ids", [])
    endless = generate_group(model, processor, groups[0], 2, 64)
    # What rows draw does not depend on who ends: two groups end in 20 tokens, the third does not.
    third = set(torch.cat(endless.ids[4:]).tolist())
    ends = [next(t for t in ids[:20].tolist() if t not in third) for ids in endless.ids[:4]]
    monkeypatch.setattr(processor, "end_ids", ends)
    rollout = generate_group(model, processor, groups[0], 2, 64)
    assert left == [1] and set(rollout.finish) == {"stop", "length"}
    with torch.no_grad():
        pack = make_pack(groups[0], [rollout.ids[2 * n : 2 * n + 2] for n in range(3)], "cuda")
        logp, _ = completion_logps(model, pack, 1.0, processor.suppressed_tokens.cuda())
    difference = (logp.cpu() - torch.cat(rollout.logps)).abs()
    assert difference.mean() < (1e-5 if model.head_weight.dtype == torch.float32 else 2e-2)


@pytest.mark.case("O13")
def test_the_flash_kernel_equals_padded_rows(groups, monkeypatch):
    model = load_model(BASE_MODEL, torch.bfloat16, "cuda")
    pack = make_pack(*groups, "cuda")
    flash, _ = completion_logps(model, pack)
    flash.sum().backward()
    flash_grads = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)

    def padded(q, k, v, layout):
        q, k, v = (x.float() for x in (q, k, v))
        return attention.packed_attention(q, k, v, layout).to(torch.bfloat16)

    monkeypatch.setattr(language, "packed_attention", padded)
    rows, _ = completion_logps(model, pack)
    rows.sum().backward()
    assert (flash - rows).abs().mean() < 2e-2
    for name, parameter in model.named_parameters():
        if name in flash_grads:
            difference = (parameter.grad.float() - flash_grads[name]).norm()
            error = difference / flash_grads[name].norm().clamp(1e-6)
            assert error < 5e-2, name


def test_a_bf16_step_moves_the_model_and_sampler_and_trainer_agree(groups):
    model, processor = load_model(BASE_MODEL, torch.bfloat16, "cuda"), Processor(BASE_MODEL)
    prompts = groups[0]
    cfg = GRPOConfig(num_generations=4, max_completion_length=24, learning_rate=1e-3)
    before = model.head_weight.detach().clone()
    optimizer = Optimizer(model, cfg)
    rollout = generate_group(model, processor, prompts, 4, 24)
    advantages = group_advantages(torch.randn(3, 4, device="cuda")).cpu()
    scored = make_groups(prompts, rollout, advantages, cfg)
    totals = backward(model, None, scored, processor.suppressed_tokens.cuda(), cfg)
    optimizer.clip_grad_norm(1.0)
    metrics = mean_metrics([totals]) | optimizer.step(0.0)
    assert metrics["sampling/sampling_logp_difference/mean"] < 2e-2
    assert metrics["grad_norm"] > 0 and not torch.equal(before, model.head_weight)
