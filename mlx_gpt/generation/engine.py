"""Decoding: prefill once, then one token a step over a KV cache, sliding past the model's context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_gpt import rng
from mlx_gpt.backend import mx
from mlx_gpt.errors import UserError
from mlx_gpt.generation.sampling import Sampling, sample
from mlx_gpt.model.cache import KVCache


def decode(model, prompt: Sequence[int], how: Sampling, seed: int = 0) -> Iterator[int]:
    """Token ids that follow `prompt`, without end. Each draw depends on (seed, its place) alone.

    Past block_size the window slides: positions are learned, so the last block_size tokens are read again from
    position 0 for each new token.
    """
    tokens, block_size = list(prompt), model.config.block_size
    _require_ids(tokens, model.vocab_size)
    cache, unread = KVCache(model.config), tokens[-block_size:]
    for place in range(1 << 31):
        if cache.offset + len(unread) > block_size:
            cache, unread = KVCache(model.config), tokens[-block_size:]
        logits = model.forward(mx.array([unread]), cache=cache)[0, -1]  # (V,)
        token = sample(logits, rng.key(seed, rng.SAMPLING, place), how).item()
        tokens.append(token)
        unread = [token]
        yield token


@dataclass(kw_only=True)
class TextStream:
    """Text that follows a prompt, in pieces as they come.

    Afterwards `finish_reason` ("stop" or "length") and `num_tokens` tell how it went.
    """

    model: object
    tokenizer: object
    prompt: Sequence[int]
    how: Sampling
    max_tokens: int
    stop: Sequence[str] = ()
    seed: int = 0
    num_tokens: int = 0
    finish_reason: str = "length"

    def __post_init__(self):
        if self.max_tokens < 0:
            raise UserError(f"max_tokens={self.max_tokens} is not allowed; 0 or more")
        if not all(self.stop):
            raise UserError("an empty stop string would end every text at once; leave it out")

    def __iter__(self) -> Iterator[str]:
        # Text that might be the beginning of a stop string is held back until the next token tells.
        held, longest = "", max(map(len, self.stop), default=1)
        ids = decode(self.model, self.prompt or [self.tokenizer.bos_id], self.how, self.seed)
        while self.num_tokens < self.max_tokens:
            token = next(ids)
            self.num_tokens += 1
            if token == self.tokenizer.eos_id:
                self.finish_reason = "stop"
                break
            held += self.tokenizer.decode([token])
            ends = [place for place in (held.find(s) for s in self.stop) if place >= 0]
            if ends:
                self.finish_reason, held = "stop", held[: min(ends)]
                break
            ready = len(held) - longest + 1
            if ready > 0:
                yield held[:ready]
                held = held[ready:]
        if held:
            yield held


def _require_ids(tokens: list[int], vocab_size: int) -> None:
    if not tokens:
        raise UserError("an empty prompt; begin with the tokenizer's BOS")
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= vocab_size:
        raise UserError(f"prompt ids from {low} to {high}, the vocabulary has 0 to {vocab_size - 1}")
