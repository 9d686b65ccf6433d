"""Decoding: the prompt at once, then one token a step over a KV cache, sliding past the model's context.

Shapes: B batch, T time, V vocabulary.
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_gpt import rng
from mlx_gpt.backend import divide, for_few_rows, lanes, mx, one_at_a_time
from mlx_gpt.errors import UserError
from mlx_gpt.generation.sampling import Sampling, sample
from mlx_gpt.model.cache import KVCache, State

MIN_PROMPT = 16  # tokens that a prompt is filled up to at least


class Decoder:
    """Decodes sequences of one length side by side. Compiled: once for the step, once for each size of prompt.

    `choose(logits, place)` draws the next ids, (B,), from logits (B, V); `place`, () int32, counts the draws.
    """

    def __init__(self, model, choose: Callable[[mx.array, mx.array], mx.array]):
        self.block_size = model.config.block_size
        model.set_weights(for_few_rows(model.weights()))

        def read(tokens: mx.array, length: mx.array, place: mx.array) -> tuple[mx.array, list[State]]:
            logits, states = [], []
            for first, end, lane in _parts(tokens):
                with mx.stream(lane):
                    cache = KVCache.make(model.config, end - first)
                    logits.append(mx.take(model.forward(tokens[first:end], cache=cache), length - 1, axis=1))
                    states.append((length, cache.layers))
            return choose(mx.concatenate(logits), place), states

        def step(ids: mx.array, place: mx.array, states: list[State]) -> tuple[mx.array, list[State]]:
            logits, after = [], []
            for (first, end, lane), state in zip(_parts(ids), states, strict=True):
                with mx.stream(lane):
                    cache = KVCache(state)
                    logits.append(model.forward(ids[first:end, None], cache=cache)[:, 0])
                    after.append(cache.state)
            return choose(mx.concatenate(logits), place), after

        self._read, self.step = mx.compile(read), mx.compile(step)

    def read(self, tokens: np.ndarray, place: mx.array) -> tuple[mx.array, list[State]]:
        """The ids that follow tokens (B, T), and the state to go on from.

        Prompts are filled up behind to a power of two, so that few lengths are ever traced; what is behind a token
        changes nothing for it, and is written over.
        """
        length = tokens.shape[1]
        size = min(max(1 << (length - 1).bit_length(), MIN_PROMPT), self.block_size)
        found = self._read(mx.array(np.pad(tokens, ((0, 0), (0, size - length)))), mx.array(length), place)
        if len(tokens) == 1:
            with one_at_a_time():
                mx.eval(found)
        return found


def _parts(tokens: mx.array) -> list[tuple[int, int, mx.Stream]]:
    """Rows of (B, ...) side by side on the lanes."""
    rows = len(tokens)
    return divide(rows, rows, lanes(), block_size=tokens.size // rows)


def decode(model, prompt: Sequence[int], how: Sampling, seed: int = 0) -> Iterator[int]:
    """Token ids that follow `prompt`, without end. Each draw depends on (seed, its place) alone.

    Past block_size the window slides: positions are learned, so the last block_size tokens are read again from
    position 0 for each new token.
    """
    tokens, block_size = list(prompt), model.config.block_size
    _require_ids(tokens, model.vocab_size)
    decoder = Decoder(model, lambda logits, place: sample(logits[0], rng.key(seed, rng.SAMPLING, place), how)[None])
    window = tokens[-block_size:]
    ids, state = decoder.read(np.array([window]), mx.array(0))
    room = block_size - len(window)
    for place in map(mx.array, range(1, 1 << 31)):
        if fits := room > 0:  # the next step is under way while this token is read and shown
            following, state = decoder.step(ids, place, state)
            mx.async_eval(following, state)
            room -= 1
        tokens.append(ids.item())
        yield tokens[-1]
        if not fits:
            following, _ = decoder.read(np.array([tokens[-block_size:]]), place)
        ids = following


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
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
        ids = decode(self.model, self.prompt or [self.tokenizer.bos_id], self.how, self.seed)
        while self.num_tokens < self.max_tokens:
            token = next(ids)
            self.num_tokens += 1
            if token == self.tokenizer.eos_id:
                self.finish_reason = "stop"
                break
            held += decoder.decode(self.tokenizer.pieces[token])
            ends = [place for place in (held.find(s) for s in self.stop) if place >= 0]
            if ends:
                self.finish_reason, held = "stop", held[: min(ends)]
                break
            ready = len(held) - longest + 1
            if ready > 0:
                yield held[:ready]
                held = held[ready:]
        else:
            held += decoder.decode(b"", final=True)
        if held:
            yield held


def _require_ids(tokens: list[int], vocab_size: int) -> None:
    if not tokens:
        raise UserError("an empty prompt; begin with the tokenizer's BOS")
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= vocab_size:
        raise UserError(f"prompt ids from {low} to {high}, the vocabulary has 0 to {vocab_size - 1}")
