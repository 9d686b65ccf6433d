"""An mlxgpt model in PyTorch, for Hugging Face transformers.

`mlxgpt export` writes this file. It is the same for every model.

Shapes: B batch, T new tokens, S cached and new tokens, C n_embd, H heads, D head width, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_mlxgpt import MLXGPTConfig

EPS = 1e-5
ROTARY_BASE = 10000.0


class Norm(nn.Module):
    """RMSNorm. If `learned`, it has a learned weight for each channel."""

    def __init__(self, width, learned):
        super().__init__()
        self.width = width
        self.register_parameter("weight", nn.Parameter(torch.ones(width)) if learned else None)

    def forward(self, x):
        return F.rms_norm(x, (self.width,), self.weight, EPS)


class Attention(nn.Module):
    """Causal self-attention. `layer` is the index of its keys and values in the cache."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        for name in ("wq", "wk", "wv", "wo"):
            setattr(self, name, nn.Linear(config.n_embd, config.n_embd, bias=False))

    def forward(self, x, positions, seen, past, explicit):
        """Maps x (B, T, C) to (B, T, C). Also returns the attention weights (B, H, T, S) if `explicit`, otherwise None.

        `positions` (B, T) are those of the new tokens. `seen` (B, 1, T, S) is True where a token attends to a key.
        `past` is the cache, to which the new keys and values are appended, or None.
        """
        B, T, C = x.shape
        H = self.config.n_head
        q, k, v = (w(x).view(B, T, H, C // H).transpose(1, 2) for w in (self.wq, self.wk, self.wv))  # (B, H, T, D)
        if self.config.qk_norm:
            q, k = (F.rms_norm(a, (C // H,), None, EPS) for a in (q, k))
        if self.config.positions == "rotary":
            q, k = rotate(q, positions), rotate(k, positions)
        if past is not None:
            k, v = past.update(k, v, self.layer)
            seen = F.pad(seen, (0, k.shape[2] - seen.shape[3]))  # a static cache returns its unused room too
        weights = None
        if explicit:
            scores = (q @ k.mT * (C // H) ** -0.5).masked_fill(~seen, -torch.inf)
            weights = scores.softmax(-1, dtype=at_least_float32(x)).to(x.dtype)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.wo(y.transpose(1, 2).reshape(B, T, C)), weights


def at_least_float32(x):
    """The dtype in which angles and softmax of an array of the dtype of x are computed."""
    return torch.promote_types(x.dtype, torch.float32)


def rotate(x, positions):
    """Rotary positions (arXiv:2104.09864) for queries or keys x (B, H, T, D) at positions (B, T).

    For i < D/2, elements i and i + D/2 of a head are rotated as a pair by the angle position * ROTARY_BASE^(-2i/D).
    """
    half, dtype = x.shape[-1] // 2, at_least_float32(x)
    rates = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angles = positions[:, None, :, None].to(dtype) * rates  # (B, 1, T, D/2)
    cos, sin, (a, b) = angles.cos(), angles.sin(), x.to(dtype).split(half, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class MLP(nn.Module):
    """The feed-forward network: squared ReLU or SwiGLU."""

    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.n_embd, config.mlp_dim, bias=False)
        self.fc2 = nn.Linear(config.mlp_dim, config.n_embd, bias=False)
        if config.mlp == "swiglu":
            self.fc_gate = nn.Linear(config.n_embd, config.mlp_dim, bias=False)
        self.gated = config.mlp == "swiglu"

    def forward(self, x):
        hidden = F.silu(self.fc_gate(x)) * self.fc1(x) if self.gated else F.relu(self.fc1(x)).square()
        return self.fc2(hidden)


class Block(GradientCheckpointingLayer):
    """Attention and the feed-forward network, each with a norm before it and a residual connection around it."""

    def __init__(self, config, layer):
        super().__init__()
        self.attn_norm = Norm(config.n_embd, config.norm_weights)
        self.mlp_norm = Norm(config.n_embd, config.norm_weights)
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x, positions, seen, past_key_values, explicit):
        """Returns the residual stream (B, T, C) and the attention weights, see Attention."""
        y, weights = self.attn(self.attn_norm(x), positions, seen, past_key_values, explicit)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), weights


class MLXGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The network, for AutoModelForCausalLM, generate() and Trainer."""

    config_class = MLXGPTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # Trainer passes num_items_in_batch, by which the loss is divided
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        if config.final_norm:
            self.final_norm = Norm(config.n_embd, config.norm_weights)
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, module):
        self.wte = module

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        **kwargs,
    ):
        """Returns logits (B, T, V) and, if `labels` (B, T) are given, the loss. Labels of -100 do not count.

        The loss is the mean over the labels. If `num_items_in_batch` is given, it is the sum over the labels, divided
        by this number. Further arguments are those of the loss function of transformers.

        Unless `position_ids` (B, T) are given, the position of a token is the number of tokens before it in its row
        that `attention_mask` (B, S) does not mask. Example: for the mask 0 0 1 1 of a left-padded row, the positions
        are 0 0 0 1.

        `logits_to_keep` selects the tokens whose logits are returned: the last ones if it is a number other than 0, or
        those of the indices if it is a tensor. `output_hidden_states` adds the input of the first block and the output
        of each block, (B, T, C) each; the last of them is the input of the head. `output_attentions` adds the attention
        weights of each block, (B, H, T, S).

        Raises:
            ValueError: Cached and new tokens together are more than block_size, or an argument has another shape.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both")
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache if use_cache is not None else self.config.use_cache:
            past_key_values = DynamicCache() if past_key_values is None else past_key_values
        else:
            past_key_values = None
        before = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        seen, positions = self._context(x, before, attention_mask)
        positions = positions if position_ids is None else position_ids.expand(len(x), -1)
        if self.config.positions == "learned":
            x = x + self.wpe(positions)
        weigh = self.config.output_attentions if output_attentions is None else output_attentions
        states, weights = self._through_layers(x, positions, seen, past_key_values, weigh)
        x = kept(states[-1], logits_to_keep)
        logits = F.linear(x, self.wte.weight) if self.config.tied_head else self.lm_head(x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        show = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        out = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if show else None,
            attentions=tuple(weights) if weigh else None,
        )
        return out.to_tuple() if return_dict is False else out

    def _through_layers(self, x, positions, seen, past_key_values, weigh):
        """Returns x and the output of every layer, (B, T, C) each, and the attention weights of every layer."""
        explicit = weigh or self.config._attn_implementation == "eager"
        states, weights = [x], []
        for layer in self.layers:
            x, found = layer(x, positions, seen, past_key_values=past_key_values, explicit=explicit)
            states.append(x)
            weights.append(found)
        if self.config.final_norm:
            states[-1] = self.final_norm(x)
        return states, weights

    def _context(self, x, before, attention_mask):
        """Returns where the new tokens x (B, T, C) attend to, (B, 1, T, S), and their positions (B, T)."""
        B, T, _ = x.shape
        S = before + T
        if S > self.config.block_size:
            raise ValueError(
                f"{S} tokens are more than the context of {self.config.block_size} tokens; give fewer, or call "
                "generate(), which reads only the last ones"
            )
        shown = torch.ones(B, S, device=x.device) if attention_mask is None else attention_mask
        if shown.shape != (B, S):
            raise ValueError(
                f"attention_mask has the shape {tuple(shown.shape)}; expected {(B, S)}, the rows and their cached and "
                "new tokens"
            )
        keys, queries = torch.arange(S, device=x.device), torch.arange(before, S, device=x.device)[:, None]
        # Each token attends to itself, also if it is padding: without any key, its softmax would be NaN.
        seen = (keys <= queries) & ((shown[:, None, None, :] > 0) | (keys == queries))
        return seen, (shown.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, inputs_embeds=None, **kwargs):
        """Returns the arguments of forward() for the next token: the tokens that are not in the cache, and the cache.

        If the text is longer than block_size, its last block_size tokens are read again without the cache. Their
        positions, which start at 0, have changed, so the cached keys and values are not valid any more.
        """
        size = self.config.block_size
        if input_ids.shape[1] > size:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            input_ids, attention_mask = input_ids[:, -size:], mask[:, -size:]
            whole = {"past_key_values": None, "position_ids": None, "next_sequence_length": None, "use_cache": False}
            kwargs = kwargs | whole
        given = {"attention_mask": attention_mask, "inputs_embeds": inputs_embeds, **kwargs}
        return super().prepare_inputs_for_generation(input_ids, **given)

    @staticmethod
    def create_masks_for_generate(attention_mask=None, **kwargs):
        """Returns the mask (B, S) unchanged. forward() needs no other mask, whichever cache is used."""
        return attention_mask

    def _get_candidate_generator(self, generation_config, **kwargs):
        """Called by generate() for assisted decoding, which needs the logits of several tokens from one context.

        Raises:
            ValueError: The text may become longer than block_size.
        """
        if generation_config.max_length > self.config.block_size:
            raise ValueError(
                f"assisted decoding up to {generation_config.max_length} tokens exceeds the context of "
                f"{self.config.block_size} tokens; lower max_new_tokens, or generate without an assistant"
            )
        return super()._get_candidate_generator(generation_config=generation_config, **kwargs)


def kept(x, logits_to_keep):
    """Returns the tokens of x (B, T, C) that `logits_to_keep` of forward() selects."""
    if isinstance(logits_to_keep, int):
        return x[:, -logits_to_keep:]  # -0 selects all of them
    if logits_to_keep.ndim != 1:
        raise ValueError(
            f"logits_to_keep has the shape {tuple(logits_to_keep.shape)}; give a number, or indices in one dimension"
        )
    return x[:, logits_to_keep]
