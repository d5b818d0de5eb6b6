"""A VLM that says a number about every token instead of odds for the next one.

The same module is the critic of train_ppo.py, a verifier of answers or of steps, and a reward
learned from people's ratings (train_verifier.py): a trunk, and a linear layer of width 1 on its
last hidden states. They differ in where the number is read, and in what it should be.

Read first: model/vlm.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.pack import Pack
from model.vlm import VLM


class ScoredVLM(nn.Module):
    """A trunk with a score for its output; in the beginning every score is 0.

    The score stays in float32, whatever the trunk computes in. The trunk's own output layer is not
    used, and not trained where the embedding does not share it.

    Attributes:
        solver: what it has read to it before the completions, see training/verifier.py.
    """

    def __init__(self, trunk: VLM):
        super().__init__()
        self.trunk, self.solver = trunk, None
        self.score = nn.Linear(trunk.head_weight.shape[1], 1, device=trunk.device)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        embeddings = [m.weight for m in trunk.modules() if isinstance(m, nn.Embedding)]
        if not any(weight is trunk.head_weight for weight in embeddings):
            trunk.head_weight.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.trunk.device

    def forward(self, pack: Pack) -> Tensor:
        """The scores (C,) fp32 of the states before each completion token of a pack.

        At the first token of a completion that is the prompt's end, the same for all G completions;
        at its end token it is the state after everything that it says.
        """
        hidden = self.trunk.completion_hidden(pack)  # (C, D)
        return F.linear(hidden.float(), self.score.weight, self.score.bias).squeeze(1)
