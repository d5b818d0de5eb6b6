"""Any other vision-language model, through transformers: the slow path.

`TransformersVLM` stands in for `VLM`: the same methods, the same random numbers, rewards and loss.
The model's classes are transformers'. What is written here is the group:

- **One prefill, then a fork.** The prompt runs once, *with* gradient, and leaves its keys and
  values (and the states of linear attention) in a cache. The cache is repeated for the G
  completions, which run against it as one padded batch. The gradient flows back through the fork,
  so a prefix is computed once per group here as well.
- **The head is not transformers'.** It passes hidden states on, and its weight is applied as the
  hand-written model's is: in fp32, by `linear_logprob` a chunk of logits at a time.

Slower than the hand-written model, and why: a group's keys are repeated G times in memory, a
rollout is not recorded as a CUDA graph, completions are padded to the longest of their group,
nothing can be computed a second time in backward (gradient checkpointing drops the cache), every
process holds the whole model (no --fsdp), and a frozen vision tower runs again in every pass.
Next: model/load.py.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer
from transformers.core_model_loading import WeightRenaming, rename_source_key

from model.pack import Pack
from model.transformers_processor import TransformersPrompt
from model.vlm import head_logits, rows_of_groups
from model.weights import Slots, is_finite, read_slots
from runtime.errors import InputError, one_line


class AssignedState(LinearAttentionLayer):
    """The state of a linear attention layer, assigned anew each time.

    transformers copies a new state into the old one's memory, through which no gradient flows.
    """

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs) -> Tensor:
        """Append the new inputs (B, channels, C) of the convolution, keep its last ones."""
        if self.has_previous_state[state_idx]:
            conv_states = torch.cat([self.conv_states[state_idx], conv_states], -1)
        width = kwargs["conv_kernel_size"]
        self.conv_states[state_idx] = F.pad(conv_states, (width, 0))[..., -width:]
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        self.device = conv_states.device
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_) -> Tensor:
        """Replace the state (B, heads, E, E)."""
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states


class TransformersVLM(nn.Module):
    """Stands in for `VLM`.

    Args:
        key_names: key of its files -> name in its state; None for what transformers leaves out.
    """

    def __init__(self, source: transformers.PreTrainedModel, key_names: dict[str, str | None]):
        super().__init__()
        self.source, self.key_names = source.eval(), key_names  # no dropout: sampler = trainer
        source.get_output_embeddings().forward = lambda hidden: hidden

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the output layer, or the embedding it is tied to."""
        return self.source.get_output_embeddings().weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight.device

    @property
    def language(self) -> nn.Module:
        """What continues a prompt: BLIP-2 and InstructBLIP demand an image of the whole model."""
        return getattr(self.source, "language_model", self.source)

    @property
    def has_mrope(self) -> bool:
        """Whether positions have three axes (Qwen3.5)."""
        return hasattr(getattr(self.source, "model", None), "rope_deltas")

    def prepare_training(self, freeze_vision: bool, gradient_checkpointing: bool) -> None:
        """Train the language model, and all the rest unless `freeze_vision`."""
        assert not gradient_checkpointing  # training/setup.py refuses it
        self.source.requires_grad_(not freeze_vision)
        self.source.get_decoder().requires_grad_(True)
        self.head_weight.requires_grad_(True)

    def keep_image_features(self, prompts: list[TransformersPrompt]) -> None:
        """Nothing is kept: the tower runs again in every pass."""

    # ---- a group -----------------------------------------------------------------------------

    def prefill_one(self, prompt: TransformersPrompt) -> tuple[Tensor, DynamicCache, int]:
        """Run one prompt: hidden states (P, D), the cache, the position after it."""
        inputs = {name: self._placed(value) for name, value in prompt.inputs.items()}
        ids, cache = prompt.ids[None].to(self.device), self._new_cache()
        if self.has_mrope:
            self.source.model.rope_deltas = None  # left by the prompt before
        hidden = self.source(input_ids=ids, **inputs, past_key_values=cache, use_cache=True).logits
        delta = self.source.model.rope_deltas if self.has_mrope else None
        return hidden[0], cache, len(prompt.ids) + (0 if delta is None else int(delta))

    def _placed(self, value: Tensor) -> Tensor:
        is_float = value.is_floating_point()
        return value.to(self.device, self.head_weight.dtype if is_float else None)

    def _new_cache(self) -> DynamicCache:
        """Full keys in every layer (the masks of sliding windows still hold), or linear states."""
        cache = DynamicCache()
        kinds = getattr(self.source.config.get_text_config(), "layer_types", None) or ()
        if "linear_attention" in kinds:
            layer_of = {"linear_attention": AssignedState, "full_attention": DynamicLayer}
            cache.layers = [layer_of[kind]() for kind in kinds]
        return cache

    def after_prefix(
        self, ids: Tensor, position: Tensor, cache: DynamicCache, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, C) after a cached prompt, the first at `position` (B,): (B, C, D).

        `mask`: (B, keys) int64, 0 for padding among the keys.
        """
        positions = position[:, None] + torch.arange(ids.shape[1], device=ids.device)  # (B, C)
        if self.has_mrope:  # text: the axes are equal
            positions = positions.expand(3, -1, -1)
        return self.language(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).logits

    def completion_hidden(self, pack: Pack) -> Tensor:
        """The hidden states (C, D) that predict the completion tokens of a pack."""
        if len(pack.pieces) > len(pack.prompts):
            raise ValueError(
                "completions that were shown something: only the hand-written families"
            )
        states, completions = [], iter(pack.targets.split(sum(pack.layout.completion_lengths, [])))
        for prompt, lengths in zip(pack.prompts, pack.layout.completion_lengths, strict=True):
            hidden, cache, position = self.prefill_one(prompt)
            G = len(lengths)
            rows = [next(completions)[:-1] for _ in range(G)]  # the last token predicts nothing
            cache.reorder_cache(torch.zeros(G, dtype=torch.int64, device=self.device))  # the fork
            after = hidden.new_empty(G, 0, hidden.shape[-1])
            if max(lengths) > 1:
                ids = pad_sequence(rows, batch_first=True)  # (G, C_max - 1)
                after = self.after_prefix(
                    ids, torch.full((G,), position, device=self.device), cache
                )
            for g, C in enumerate(lengths):
                states += [hidden[-1:], after[g, : C - 1]]
        return torch.cat(states)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, D) -> (B, V) in fp32."""
        return head_logits(hidden, self.head_weight)

    def prefill(
        self, prompts: list[TransformersPrompt], group_size: int, max_completion_length: int
    ) -> tuple[Tensor, "TransformersRows"]:
        """As `VLM.prefill`, one prompt after the other."""
        hidden, caches, positions = zip(*map(self.prefill_one, prompts), strict=True)
        lengths = [len(prompt.ids) for prompt in prompts]
        rows = TransformersRows(self, lengths, caches, positions, group_size, max_completion_length)
        last = torch.stack([states[-1] for states in hidden])  # (N, D)
        return self.logits(last).repeat_interleave(group_size, 0), rows

    def tensors_of_files(self, slots: Slots, source: Path) -> dict[str, Tensor]:
        """Key of the files -> its value, without gradient; InputError if they are not its own."""
        if {*slots} != {*self.key_names}:
            raise InputError(f"{source}: its files are not those of the model any more")
        state, tensors = self.source.state_dict(), {}
        for key, name in self.key_names.items():
            if name is not None:
                tensors[key] = state[name].detach()
            else:  # a draft head, a buffer of former times: copied as it is
                with safe_open(source / slots[key].file, "pt") as file:
                    tensors[key] = file.get_tensor(key)
        return tensors


class TransformersRows:
    """Stands in for `DecodingRows`: N * G rows, prompts padded on the left.

    Args:
        lengths: P_n of each prompt. caches, positions: after its prefill.
    """

    is_recordable = False

    def __init__(
        self,
        model: TransformersVLM,
        lengths: list[int],
        caches: list[DynamicCache],
        positions: list[int],
        group_size: int,
        max_completion_length: int,
    ):
        self.model, self.group_size, device = model, group_size, model.device
        P, B = max(lengths), len(lengths) * group_size
        row_lengths = torch.tensor(lengths, device=device).repeat_interleave(group_size)  # (B,)
        self.position = torch.tensor(positions, device=device).repeat_interleave(group_size)
        places = torch.arange(P + max_completion_length, device=device)
        self.mask = (places >= P - row_lengths[:, None]).long()  # (B, P + C_max)
        self.length, self.cache = P, merged(caches, P)
        self.cache.reorder_cache(torch.arange(B, device=device) // group_size)

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest token of each row (B,) -> logits (B, V) fp32 of the next one."""
        self.length += 1
        mask = self.mask[:, : self.length]
        hidden = self.model.after_prefix(ids[:, None], self.position, self.cache, mask)  # (B, 1, D)
        self.position += 1
        return self.model.logits(hidden[:, 0])

    def keep(self, groups: Tensor) -> Tensor:
        """Drop all groups but these (N',); returns the rows (B',) int64 that stay."""
        rows = rows_of_groups(groups, self.group_size)
        self.cache.reorder_cache(rows)
        self.position, self.mask = self.position[rows], self.mask[rows]
        return rows


def merged(caches: list[DynamicCache], P: int) -> DynamicCache:
    """The caches of N prompts as one of N rows: keys and values padded on the left to P."""
    first, *others = caches
    for layer, *rest in zip(first.layers, *(cache.layers for cache in others), strict=True):
        parts = [layer, *rest]
        if isinstance(layer, AssignedState):
            layer.conv_states[0] = torch.cat([part.conv_states[0] for part in parts])
            layer.recurrent_states[0] = torch.cat([part.recurrent_states[0] for part in parts])
        else:
            for name in ("keys", "values"):  # (1, K, P_n, E) each
                tensors = [getattr(part, name) for part in parts]
                tensors = [F.pad(x, (0, 0, P - x.shape[2], 0)) for x in tensors]
                setattr(layer, name, torch.cat(tensors))
    return first


# ---- files -----------------------------------------------------------------------------------


def load(directory: Path, dtype: torch.dtype, device: torch.device | str) -> TransformersVLM:
    """Build and fill the model of a directory, strictly.

    Raises InputError for damaged files, a missing, unexpected or misshapen tensor, and what the
    head or the files of this model have that is not written here.
    """
    slots = read_slots(directory)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # its report; what it says is one line below
    try:
        source, info = transformers.AutoModelForImageTextToText.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
        )
    except Exception as error:  # the library raises almost anything on damaged files
        raise InputError(f"--model {directory}: cannot be loaded ({one_line(error)})") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            count, first = len(info[kind]), sorted(map(str, info[kind]))[0]
            what = f"{count} {kind.replace('_', ' ')}, first {first!r}; does config.json fit?"
            raise InputError(f"{directory}: {what}")
    if wrong := [name for name, p in source.named_parameters() if not is_finite(p)]:
        raise InputError(f"{directory}: {wrong[0]} is not finite; its file is damaged")
    check_computed(source, directory)
    return TransformersVLM(source.to(device), key_names(source, slots, directory))


def check_computed(source: transformers.PreTrainedModel, directory: Path) -> None:
    """Raise InputError where `linear_logprob` of the head's weight would not be the model."""
    text, head = source.config.get_text_config(), source.get_output_embeddings()
    is_plain = isinstance(head, nn.Linear) and head.bias is None
    if not is_plain or getattr(text, "final_logit_softcapping", None):
        raise InputError(f"{directory}: an output layer with a bias or a soft cap is not supported")
    if source.config.is_encoder_decoder or getattr(text, "is_encoder_decoder", False):
        what = "its language model is an encoder-decoder (T5)"
        raise InputError(f"{directory}: {what}; only decoders can continue a shared prefix")


def key_names(source: transformers.PreTrainedModel, slots: Slots, directory: Path) -> dict:
    """Key of the files -> name in the model's state, as transformers renamed it while loading.

    None for a tensor that transformers leaves out of the model; what it does not know is refused
    before. Raises InputError where keys and parameters do not correspond one to one.
    """
    changes = getattr(source, "_weight_conversions", None) or []
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    state, prefix = source.state_dict(), source.base_model_prefix
    names = {key: rename_source_key(key, renamings, [], prefix, state)[0] for key in slots}
    names = {key: name if name in state else None for key, name in names.items()}
    unread = {name for name, _ in source.named_parameters()} - {*names.values()}
    wrong = [key for key, name in names.items() if name and state[name].shape != slots[key].shape]
    if unread or wrong:
        what = f"{[*wrong, *sorted(unread)][0]} is not stored as the model has it"
        raise InputError(f"{directory}: {what}, so it could not be written back")
    return names
