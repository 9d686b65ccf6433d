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

    def forward(self, x, positions, mask, past):
        """Maps x (B, T, C) to (B, T, C).

        `positions` (B, T) are those of the new tokens. `mask` (B, 1, T, S) is added to the scores. `past` is the cache,
        to which the new keys and values are appended, or None.
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
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        return self.wo(y.transpose(1, 2).reshape(B, T, C))


def rotate(x, positions):
    """Rotary positions (arXiv:2104.09864) for queries or keys x (B, H, T, D) at positions (B, T).

    For i < D/2, elements i and i + D/2 of a head are rotated as a pair by the angle position * ROTARY_BASE^(-2i/D).
    """
    half = x.shape[-1] // 2
    rates = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions[:, None, :, None].float() * rates  # (B, 1, T, D/2)
    cos, sin, (a, b) = angles.cos(), angles.sin(), x.float().split(half, dim=-1)
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


class Block(nn.Module):
    """Attention and the feed-forward network, each with a norm before it and a residual connection around it."""

    def __init__(self, config, layer):
        super().__init__()
        self.attn_norm = Norm(config.n_embd, config.norm_weights)
        self.mlp_norm = Norm(config.n_embd, config.norm_weights)
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x, positions, mask, past):
        x = x + self.attn(self.attn_norm(x), positions, mask, past)
        return x + self.mlp(self.mlp_norm(x))


class MLXGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The network, for AutoModelForCausalLM and generate()."""

    config_class = MLXGPTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ["Block"]
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
        return_dict=None,
        **kwargs,
    ):
        """Returns logits (B, T, V) and, if `labels` (B, T) are given, the loss. Labels of -100 do not count.

        Unless `position_ids` are given, the position of a token is the number of tokens before it in its row that
        `attention_mask` (B, S) does not mask. Example: for the mask 0 0 1 1 of a left-padded row, the positions are
        0 0 0 1.

        Raises:
            ValueError: Cached and new tokens together are more than block_size.
        """
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        B, T, _ = x.shape
        if use_cache if use_cache is not None else self.config.use_cache:
            past_key_values = DynamicCache() if past_key_values is None else past_key_values
        else:
            past_key_values = None
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        S = before + T
        if S > self.config.block_size:
            raise ValueError(
                f"{S} tokens are more than the context of {self.config.block_size} tokens; give fewer, or call "
                "generate(), which reads only the last ones"
            )
        shown = torch.ones(B, S, device=x.device) if attention_mask is None else attention_mask[:, -S:]
        if position_ids is None:
            position_ids = (shown.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        if self.config.positions == "learned":
            x = x + self.wpe(position_ids)
        keys, queries = torch.arange(S, device=x.device), torch.arange(before, S, device=x.device)
        seen = (keys[None, :] <= queries[:, None])[None, None] & (shown[:, None, None, :] > 0)  # (B, 1, T, S)
        # The lowest finite number, not -inf: a padding token on the left sees no key, and -inf would give NaN.
        mask = torch.zeros(seen.shape, device=x.device).masked_fill(~seen, torch.finfo(x.dtype).min)
        for layer in self.layers:
            x = layer(x, position_ids, mask, past_key_values)
        if self.config.final_norm:
            x = self.final_norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        x = x[:, kept]
        logits = F.linear(x, self.wte.weight) if self.config.tied_head else self.lm_head(x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        if return_dict is False:
            return (logits, past_key_values) if loss is None else (loss, logits, past_key_values)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        """Returns the arguments of forward() for the next token: the tokens that are not in the cache, and the cache.

        If the text is longer than block_size, its last block_size tokens are read again without the cache. Their
        positions, which start at 0, have changed, so the cached keys and values are not valid any more.
        """
        size = self.config.block_size
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if input_ids.shape[1] > size:
            return {"input_ids": input_ids[:, -size:], "attention_mask": mask[:, -size:], "use_cache": False}
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "input_ids": input_ids[:, before:],
            "attention_mask": mask,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
        }
