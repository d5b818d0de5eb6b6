"""The flags of every training that samples completions and rewards them.

train_grpo.py and train_ppo.py add those of their own algorithm. Next: training/scoring.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config import TaskConfig, TrainConfig, flag, require, require_counts

OF_THE_TASK = (  # flags of the task's own reward, which --reward replaces
    *("correct_weight", "confidence_weight", "format_weight", "length_weight", "look_bonus"),
    *("dense", "dense_schedule"),
)


def weights_of_parts(cfg: TaskConfig) -> dict[str, float]:
    """The weights of the parts of a task's own reward (`rewards.WEIGHTS`), by the flags."""
    weights = {"correct": cfg.correct_weight, "iou": cfg.correct_weight}
    return weights | {"confidence": cfg.confidence_weight, "format": cfg.format_weight}


@dataclass(frozen=True)
class RolloutConfig(TrainConfig):
    """What is sampled, and what it is paid."""

    # Rollout
    num_generations: int = flag(8, "completions per question: G")
    temperature: float = flag(1.0, "of sampling and of the trained distribution alike")
    # Reward
    correct_weight: float = flag(1.0, "weight of the right answer, or of the boxes' overlap")
    confidence_weight: float = flag(1.0, "det, ovd: weight of well-placed confidence")
    format_weight: float = flag(0.5, "weight of the asked-for format")
    look_bonus: float = flag(0.3, "zoom: for a look that was needed, well aimed, and helped")
    dense: float = flag(0.0, "credit for being nearly right, 0 (sparse) .. 1")
    dense_schedule: Literal["constant", "linear"] = flag("constant", "or: decay dense to 0")
    overlong_weight: float = flag(0.0, "penalty near the length limit (DAPO)")
    overlong_buffer: int = flag(16, "tokens before the limit in which that penalty grows")
    repetition_weight: float = flag(0.0, "penalty for repeated n-grams of words")
    length_weight: float = flag(0.0, "reward for short right answers (Kimi k1.5)")
    reward: str | None = flag(None, "path/to/file.py:function, instead of the task's own reward")
    reward_timeout: float = flag(30.0, "seconds that it may take for the answers to one question")
    reward_model: Path | None = flag(None, "directory that train_verifier.py has written")
    reward_model_weight: float = flag(0.3, "weight of what it says, beside the rule")
    beta: float = flag(0.0, "weight of the KL to the starting model; 0 needs no second model")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "num_generations overlong_buffer")
        require(1e-3 <= self.temperature <= 1e3, "temperature", "in 0.001 .. 1000", self)
        weights = "correct confidence format overlong repetition length"
        for name in (*(f"{part}_weight" for part in weights.split()), "beta", "look_bonus"):
            require(0 <= getattr(self, name) <= 1e6, name, "in 0 .. 1e6", self)
        require(0 <= self.dense <= 1, "dense", "in 0 .. 1", self)
        require(0 < self.reward_timeout <= 1e6, "reward_timeout", "above 0 seconds", self)
        if self.reward is not None:
            require(self.reward != "", "reward", "path/to/file.py:function", self)
            for name in OF_THE_TASK:
                is_unset = getattr(self, name) == getattr(RolloutConfig, name)
                require(is_unset, name, "left out with --reward, which is the whole reward", self)
        weight, default = self.reward_model_weight, RolloutConfig.reward_model_weight
        require(0 < weight <= 1e6, "reward_model_weight", "above 0, at most 1e6", self)
        is_used = self.reward_model is not None or weight == default
        require(is_used, "reward_model_weight", "left out without --reward_model", self)
        is_decayed = self.dense > 0 or self.dense_schedule == "constant"
        require(is_decayed, "dense_schedule", "left out where --dense is 0", self)
        total = self.correct_weight + self.format_weight
        require(total > 0, "correct_weight", "above 0 where --format_weight is 0", self)

    @property
    def frozen_models(self) -> int:
        """The reference (of an adapter: the base itself), and the model of a learned reward."""
        has_reference = self.beta > 0 and not self.trains_adapter
        return has_reference + (self.reward_model is not None)
