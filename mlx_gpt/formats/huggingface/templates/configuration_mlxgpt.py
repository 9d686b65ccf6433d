"""The configuration of an mlxgpt model, for Hugging Face transformers.

`mlxgpt export` writes this file. It is the same for every model.
"""

from transformers import PretrainedConfig


class MLXGPTConfig(PretrainedConfig):
    """The settings of the network.

    Args:
        vocab_size: The number of token ids.
        n_embd: The width of the residual stream.
        n_head: The number of attention heads. It divides n_embd.
        n_layer: The number of blocks.
        block_size: The longest context, in tokens.
        mlp_dim: The width of the hidden layer of the feed-forward network.
        mlp: The feed-forward network: "relu2" (squared ReLU) or "swiglu".
        positions: "learned" or "rotary".
        qk_norm: Whether queries and keys are normalized.
        norm_weights: Whether the norms of the residual stream have a learned weight for each channel.
        final_norm: Whether the input of the head is normalized.
        tied_head: Whether the token embedding is also the head.
        use_cache: Whether keys and values are cached by default.
    """

    model_type = "mlxgpt"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "block_size",
    }

    def __init__(
        self,
        vocab_size=67,
        n_embd=256,
        n_head=8,
        n_layer=6,
        block_size=256,
        mlp_dim=1024,
        mlp="relu2",
        positions="learned",
        qk_norm=False,
        norm_weights=False,
        final_norm=False,
        tied_head=False,
        use_cache=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.n_embd = n_embd
        self.n_head = n_head
        self.n_layer = n_layer
        self.block_size = block_size
        self.mlp_dim = mlp_dim
        self.mlp = mlp
        self.positions = positions
        self.qk_norm = qk_norm
        self.norm_weights = norm_weights
        self.final_norm = final_norm
        self.tied_head = tied_head
        self.use_cache = use_cache
        super().__init__(**kwargs)
