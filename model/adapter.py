"""A linear layer with room for a LoRA adapter: y = x W^T + scale (x A^T) B^T.

Source: Hu et al., arXiv:2106.09685, section 4.1. Read first: model/lora.py.
Next: model/language.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pairs = dict[str, tuple[Tensor, Tensor]]  # name -> A (r, in), B (rows, r)


class Adapter(nn.Module):
    """The pairs A, B of one linear layer, whose rows may have several names in the files.

    Attributes:
        reference: pairs of the policy that a KL term compares with; empty: the base itself.
        use_reference: what `pairs` gives.
    """

    def __init__(self, rows: dict[str, int], pairs: Pairs, scale: float):
        """`rows`: of every name in the layer's order; those without a pair are not adapted."""
        super().__init__()
        self.rows, self.scale = rows, scale
        self.A = nn.ParameterDict({name: nn.Parameter(A) for name, (A, _) in pairs.items()})
        self.B = nn.ParameterDict({name: nn.Parameter(B) for name, (_, B) in pairs.items()})
        self.reference: Pairs = {}
        self.use_reference = False

    def pairs(self) -> Pairs:
        """The pairs in use."""
        if self.use_reference:
            return self.reference
        # In the order of rows: a ParameterDict sorts its names.
        return {name: (self.A[name], self.B[name]) for name in self.rows if name in self.A}

    def forward(self, x: Tensor) -> Tensor | None:
        """(T, in) -> what is added to the layer's output, (T, out); None if that is nothing."""
        pairs = self.pairs()
        if not pairs:
            return None
        down = F.linear(x, torch.cat([A for A, _ in pairs.values()])) * self.scale  # (T, n r)
        parts = iter(down.chunk(len(pairs), dim=-1))
        return torch.cat(
            [
                F.linear(next(parts), pairs[name][1])
                if name in pairs
                else x.new_zeros(len(x), rows)
                for name, rows in self.rows.items()
            ],
            dim=-1,
        )

    def stacked(self) -> tuple[Tensor, Tensor] | None:
        """For decoding: all A in one, (n r, in), and all B scaled in one, (out, n r)."""
        pairs = self.pairs()
        if not pairs:
            return None
        A = torch.cat([A for A, _ in pairs.values()])
        blocks = [
            pairs[name][1] * self.scale if name in pairs else A.new_zeros(rows, 0)
            for name, rows in self.rows.items()
        ]
        return A, torch.block_diag(*blocks)


class Linear(nn.Linear):
    """`nn.Linear` that adds what its adapter says, if it has one."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.lora: Adapter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        y = F.linear(x, self.weight, self.bias)
        added = None if self.lora is None else self.lora(x)
        return y if added is None else y + added

    def for_decoding(self) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Weight, bias and `Adapter.stacked`, looked up once per rollout; see `linear`."""
        adapter = None if self.lora is None else self.lora.stacked()
        return self.weight, self.bias, adapter


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, adapter) -> Tensor:
    """`Linear.forward` with what `Linear.for_decoding` gave: (B, in) -> (B, out)."""
    y = F.linear(x, weight, bias)
    if adapter is None:
        return y
    A, B = adapter
    return torch.addmm(y, F.linear(x, A), B.T)
