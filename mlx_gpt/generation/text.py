"""Token ids to text: up to a stop string, and without half a character."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_gpt.errors import UserError
from mlx_gpt.generation.decode import decode
from mlx_gpt.generation.sampling import Sampling


class TextWriter:
    """Token ids to text, as far as it is certain: up to a stop string, and without half a character.

    `finish_reason` becomes "stop" at a stop string or the tokenizer's end of text. `length` counts the characters so
    far, `released` those of them that are certain.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        if not all(stop):
            raise UserError("an empty stop string would end every text at once; leave it out")
        self.tokenizer, self._stop = tokenizer, stop
        self._longest = max(map(len, stop), default=1)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
        self._held = ""  # might be the beginning of a stop string
        self.length, self.released, self.finish_reason = 0, 0, None

    def feed(self, token: int) -> str:
        """The text that is certain now."""
        if token == self.tokenizer.eos_id:
            self.finish_reason = "stop"
            return self._release(len(self._held))
        piece = self._decoder.decode(self.tokenizer.pieces[token])
        self.length += len(piece)
        self._held += piece
        ends = [place for place in (self._held.find(s) for s in self._stop) if place >= 0]
        if ends:
            self.finish_reason = "stop"
            self.length -= len(self._held) - min(ends)
            self._held = self._held[: min(ends)]
            return self._release(len(self._held))
        return self._release(max(len(self._held) - self._longest + 1, 0))

    def end(self) -> str:
        """What was held back, where no more tokens come."""
        if self.finish_reason:
            return ""
        self.finish_reason = "length"
        rest = self._decoder.decode(b"", final=True)
        self.length += len(rest)
        self._held += rest
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        ready, self._held = self._held[:count], self._held[count:]
        self.released += count
        return ready


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

    def __post_init__(self):
        if self.max_tokens < 0:
            raise UserError(f"max_tokens={self.max_tokens} is not allowed; 0 or more")
        self._writer = TextWriter(self.tokenizer, self.stop)

    @property
    def finish_reason(self) -> str:
        return self._writer.finish_reason

    def __iter__(self) -> Iterator[str]:
        ids = decode(self.model, self.prompt or [self.tokenizer.bos_id], self.how, self.seed)
        while self.num_tokens < self.max_tokens and not self.finish_reason:
            self.num_tokens += 1
            if text := self._writer.feed(next(ids)):
                yield text
        if text := self._writer.end():
            yield text
