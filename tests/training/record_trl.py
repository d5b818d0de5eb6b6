"""What TRL's GRPOTrainer computes from given tensors: its losses and their gradients.

    python -m tests.training.record_trl        # needs TRL; writes tests/training/recorded_trl.json

Its `_compute_loss` is called as it is, on a stand-in for the trainer that only has settings and
returns log-probabilities that we choose. tests/training/test_trl.py compares ours with the record,
and with TRL itself where it is installed.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch

FILE = Path(__file__).with_name("recorded_trl.json")
LENGTHS, C_MAX = [4, 1, 3, 2], 4
CASES = {  # name -> settings, in our words
    "grpo": {"loss_type": "grpo"},
    "grpo with a KL": {"loss_type": "grpo", "beta": 0.1},
    "dapo, clip higher": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "two-sided clip": {"loss_type": "dapo", "delta": 1.5},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.3},
    "sapo": {"loss_type": "sapo"},
}


def tensors() -> dict[str, torch.Tensor]:
    """(C,) float64 each, and advantages (B,): ratios on both sides of every threshold."""
    generator = torch.Generator().manual_seed(7)
    C = sum(LENGTHS)
    logp = -torch.rand(C, generator=generator, dtype=torch.float64) - 0.1
    log_ratio = [0.05, 0.3, -0.4, 0.5, -0.6, 0.1, -0.35, 0.7, -0.3, 0.25]
    log_ratio = torch.tensor(log_ratio, dtype=torch.float64)
    logp_ref = logp + 0.3 * torch.randn(C, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.2, -0.7, -0.4, 0.5], dtype=torch.float64)
    return {
        "logp": logp,
        "logp_old": logp - log_ratio,
        "logp_ref": logp_ref,
        "advantages": advantages,
    }


def padded(values: torch.Tensor) -> torch.Tensor:
    """(C,) -> (B, C_max), as TRL has it."""
    return torch.nn.utils.rnn.pad_sequence(values.split(LENGTHS), batch_first=True)


def trl_loss(settings: dict) -> tuple[float, list[float]]:
    """TRL's loss, and its gradient by the log-probabilities (C,)."""
    from trl import GRPOTrainer

    given, epsilon = tensors(), settings.get("epsilon", 0.2)
    logp = given["logp"].requires_grad_()
    mask = padded(torch.ones(sum(LENGTHS), dtype=torch.float64))
    args = SimpleNamespace(
        use_bias_correction_kl=False,
        delta=settings.get("delta"),
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=1,
    )
    trainer = MagicMock(
        args=args,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=settings.get("importance_sampling_level", "token"),
        beta=settings.get("beta", 0.0),
        loss_type=settings["loss_type"],
        epsilon_low=epsilon,
        epsilon_high=settings.get("epsilon_high", epsilon),
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=C_MAX,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    trainer.accelerator.num_processes = 1
    trainer.accelerator.gather = lambda value: value
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (padded(logp), mask, None)
    ids = torch.zeros_like(mask, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": mask,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": given["advantages"],
        "old_per_token_logps": padded(given["logp_old"]),
        "ref_per_token_logps": padded(given["logp_ref"]),
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.item(), gradient.tolist()


def main() -> None:
    import trl

    record = {"trl": trl.__version__}
    for name, settings in CASES.items():
        loss, gradient = trl_loss(settings)
        record[name] = {"loss": loss, "gradient": gradient}
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
