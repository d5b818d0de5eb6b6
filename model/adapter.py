"""A linear layer with room for a LoRA adapter: y = x W^T + scale (x A^T) B^T.

Source: Hu et al., arXiv:2106.09685, section 4.1. Read first: model/lora.py.
Next: model/language.py.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import gated_linear

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

    def stacked_A(self) -> Tensor | None:
        """All A in one, (n r, in); None if there is no pair."""
        pairs = self.pairs()
        return torch.cat([A for A, _ in pairs.values()]) if pairs else None

    def forward(self, low: Tensor) -> Tensor:
        """x A^T of `stacked_A`, (T, n r) -> what is added to the layer's output, (T, out)."""
        pairs, low = self.pairs(), low * self.scale
        parts = iter(low.chunk(len(pairs), dim=-1))
        return torch.cat(
            [
                F.linear(next(parts), pairs[name][1])
                if name in pairs
                else low.new_zeros(len(low), rows)
                for name, rows in self.rows.items()
            ],
            dim=-1,
        )

    def stacked(self) -> tuple[Tensor, Tensor] | None:
        """For decoding: all A in one, (n r, in), and all B scaled in one, (out, n r)."""
        pairs, A = self.pairs(), self.stacked_A()
        if A is None:
            return None
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
        y, A = F.linear(x, self.weight, self.bias), self.stacked_A()
        return y if A is None else y + self.lora(F.linear(x, A))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """`forward(gated_product(gate, up))` of a layer without bias: gate, up (T, in) -> (T, out).

        Of its input and what made it only gate and up are kept for backward.
        """
        if (A := self.stacked_A()) is None:
            return gated_linear(gate, up, self.weight)[0]
        y, low = gated_linear(gate, up, self.weight, A)
        return y + self.lora(low)

    def stacked_A(self) -> Tensor | None:
        """`Adapter.stacked_A`; None without an adapter."""
        return None if self.lora is None else self.lora.stacked_A()

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


@dataclass
class Change:
    """Sums over weights of what was to be added to them, and of what rounding left of it."""

    wanted: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    error: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    product: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    held: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, weight: Tensor, delta: Tensor) -> None:
        """Add `delta`, fp32, to a weight in place, rounded once."""
        before = weight.to(torch.float32, copy=True)
        weight.copy_(before + delta)
        change = weight.float() - before
        self.wanted += delta.double().square().sum().cpu()
        self.error += (change - delta).double().square().sum().cpu()
        self.product += (change * delta).double().sum().cpu()
        self.held += change.double().square().sum().cpu()
