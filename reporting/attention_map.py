"""Where an answer looked: the attention of its tokens to the patches of the image.

The mean over layers and heads of plain softmax attention. It shows where information was fetched
from, not why an answer was given (Jain and Wallace, arXiv:1902.10186): look, but do not conclude.
"""

import torch
from torch import Tensor

from model.language import add_deep, mrope
from model.pack import make_pack
from model.vlm import VLM, Prompt


@torch.no_grad()
def attention_to_prompt(model: VLM, prompt: Prompt, completion: Tensor) -> Tensor:
    """How much every token of a completion (C,) int64 looks at every token of the prompt.

    Returns: (C, P) fp32 on the CPU: the mean over layers and heads of the attention weights. A row
        sums to at most 1; the rest looks at the completion itself.
    """
    pack = make_pack([prompt], [[completion]], model.device)
    P, T = len(prompt.ids), len(pack.ids)
    features = model.image_features([prompt])  # (Q, levels, D)
    slots = model.image_slots(pack.pieces, pack.starts)  # (Q,)
    x = model.embed(pack.ids, features, slots)  # (T, D)
    deep = None if features is None else features[:, 1:]  # (Q, levels - 1, D)
    rotary = tuple(table.to(x.dtype) for table in mrope(pack.positions, model.cfg.text))
    later = torch.ones(T - P, T, dtype=torch.bool, device=x.device).triu(P + 1)  # (C, T)
    total = torch.zeros(T - P, P, device=x.device)
    for number, layer in enumerate(model.model.layers):
        q, k, _ = layer.self_attn.project(layer.input_layernorm(x), rotary)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (T, H, E)
        scores = torch.einsum("che,the->hct", q[P:].float(), k.float()) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)  # (H, C, T)
        total += weights[:, :, :P].mean(0)
        x = layer(x, rotary, pack.layout, None)
        x = add_deep(x, slots, deep, number)
    return (total / len(model.model.layers)).cpu()


def answer_heat(model: VLM, prompt: Prompt, completion: Tensor, answer: list[bool]) -> list:
    """Attention of the answer's tokens to the first image: rows of numbers, the largest is 1.

    Args:
        answer: per completion token, whether it belongs to the answer; none: all of them do.
    Returns: one list per row of image tokens; empty for a prompt without an image.
    """
    if not prompt.grids:
        return []
    merge = model.cfg.vision.spatial_merge_size
    t, h, w = prompt.grids[0]
    slots = (prompt.ids == model.cfg.image_token_id).nonzero().squeeze(1)  # (Q,) of all images
    weights = attention_to_prompt(model, prompt, completion)[:, slots[: t * h * w // merge**2]]
    is_used = torch.tensor(answer) | (not any(answer))  # (C,)
    heat = weights[is_used].mean(0).view(t, h // merge, w // merge).sum(0)  # (rows, columns)
    heat = heat / heat.max().clamp_min(1e-12)
    return [[round(float(value), 2) for value in row] for row in heat]
