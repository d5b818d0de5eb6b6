"""Every objective is TRL's on equal tensors: its loss, and the gradient by each log-probability."""

import importlib.util
import json

import pytest
import torch

from tests.training.record_trl import C_MAX, CASES, FILE, LENGTHS, tensors, trl_loss
from train_grpo import GRPOConfig, grpo_loss, token_weights

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


def our_loss(settings: dict) -> tuple[float, torch.Tensor]:
    """Our loss, and its gradient by the log-probabilities (C,)."""
    cfg, given = GRPOConfig(num_iterations=2, **settings), tensors()
    logp, counts = given["logp"].requires_grad_(), torch.tensor(LENGTHS)
    advantages = given["advantages"].repeat_interleave(counts)  # (C,)
    weights = token_weights(LENGTHS, cfg.loss_type, C_MAX).double()
    completion_of = torch.arange(len(LENGTHS)).repeat_interleave(counts)
    reference = given["logp_ref"] if cfg.beta else None
    terms = (given["logp_old"], reference, advantages, weights, cfg, completion_of)
    loss, _ = grpo_loss(logp, *terms)
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.item(), gradient


@pytest.mark.parametrize("name", CASES)
def test_our_objective_is_that_of_trl_as_it_was_recorded(name):
    loss, gradient = our_loss(CASES[name])
    recorded = torch.tensor(RECORDED[name]["gradient"], dtype=torch.float64)
    assert loss == pytest.approx(RECORDED[name]["loss"], rel=1e-6)  # our weights are fp32
    torch.testing.assert_close(gradient, recorded, rtol=1e-6, atol=1e-9)


def test_the_cases_reach_both_sides_of_every_threshold():
    ratio = (tensors()["logp"] - tensors()["logp_old"]).exp()
    assert (ratio < 0.8).any() and (ratio > 1.5).any() and ((ratio > 0.8) & (ratio < 1.2)).any()
    losses = [record["loss"] for record in (RECORDED[name] for name in CASES)]
    assert len({round(loss, 9) for loss in losses}) == len(CASES)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("name", CASES)
def test_the_record_is_what_trl_computes(name):
    loss, gradient = trl_loss(CASES[name])
    assert loss == pytest.approx(RECORDED[name]["loss"], rel=1e-12)
    assert gradient == pytest.approx(RECORDED[name]["gradient"], rel=1e-9, abs=1e-12)
