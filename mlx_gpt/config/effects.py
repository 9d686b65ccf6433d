"""Settings that have an effect only beside certain values of another setting."""

from collections.abc import Iterable

from mlx_gpt.config.schema import Config

MUONS = ("muon", "normuon", "muon-lion")
# Name of a setting -> the other setting, and the values of it that the setting needs; () is a number above 0.
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("model.n_expert", "model.n_expert_per_token", "model.n_shared_expert", "train.balance_weight"),
        ("model.ffn", ("moe",)),
    ),
    **dict.fromkeys(
        ("model.ternary_group", "model.ternary_activations", "model.ternary_norm"),
        ("model.linear", ("ternary", "ternary-packed")),
    ),
    **dict.fromkeys(
        (
            *("model.kv_lora_rank", "model.q_lora_rank", "model.v_head_dim"),
            *("model.qk_nope_head_dim", "model.qk_rope_head_dim"),
        ),
        ("model.mixers", ("mla",)),
    ),
    **dict.fromkeys(("model.rope_theta", "model.rope_scale"), ("model.positions", ("rotary",))),
    **dict.fromkeys(
        ("optimizer.momentum", "optimizer.muon_lr_scale", "optimizer.newton_schulz"), ("optimizer.name", MUONS)
    ),
    **dict.fromkeys(("optimizer.outer_learning_rate", "optimizer.outer_momentum"), ("train.sync_every", ())),
    "model.n_kv_head": ("model.mixers", ("attention",)),
    "model.n_stream": ("model.residual", ("mhc",)),
    "optimizer.decay_start": ("optimizer.schedule", ("cosine", "wsd", "wsd-cosine")),
    "optimizer.lr_cut": ("optimizer.max_lr_cuts", ()),
    "data.vocab_size": ("data.tokenizer", ("bpe", "byte-bpe")),
    "data.bpe_rule": ("data.tokenizer", ("bpe",)),
}


def without_effect(config: Config, names: Iterable[str]) -> list[str]:
    """Describes those settings that have no effect: "model.n_stream has no effect without model.residual=mhc".

    Args:
        config: The settings of a run.
        names: Dotted names of settings.
    """
    found = []
    for name in names:
        if not has_effect(config, name):
            other, values = NEEDS[name]
            found.append(f"{name} has no effect without {other}" + (f"={'|'.join(values)}" if values else " above 0"))
    return found


def has_effect(config: Config, name: str) -> bool:
    """Whether a setting, given by its dotted name, has an effect beside the other settings."""
    if name not in NEEDS:
        return True
    other, values = NEEDS[name]
    if not values:
        return config.get(other) > 0
    found = config.model.mixer_of if other == "model.mixers" else [config.get(other)]
    return not set(values).isdisjoint(found)
