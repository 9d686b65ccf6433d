"""Token ids to text, in pieces that no later token can change."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_gpt.errors import UserError
from mlx_gpt.generation.decode import decode
from mlx_gpt.generation.sampling import Sampling


class TextWriter:
    """Decodes token ids one by one and returns the text that is certain.

    Two things are held back. A token may end within a UTF-8 character, whose first bytes wait for the rest. The last
    characters may be the beginning of a stop string, which is not part of the text: with the longest stop string n
    characters long, n - 1 characters wait.

    With stop=("END",), the tokens "a", "bE", "N", "Dc" give:

        feed("a")  -> ""     "a" is held back: the last two characters always wait
        feed("bE") -> "a"    "bE" is held back
        feed("N")  -> "b"    "EN" is held back
        feed("Dc") -> ""     "END" ends the text before "END"; finish_reason is "stop"

    Args:
        tokenizer: Gives each id's bytes (`pieces`) and the id that ends a text (`eos_id`).
        stop: Strings that end the text.

    Attributes:
        finish_reason: None, then "stop" at a stop string or `eos_id`, or "length" after end().
        length: Characters so far, those held back included.
        released: Characters returned so far.

    Raises:
        UserError: A stop string is empty.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        if not all(stop):
            raise UserError("an empty stop string would end every text at once; leave it out")
        self.tokenizer, self._stop = tokenizer, stop
        self._longest = max(map(len, stop), default=1)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
        self._held = ""  # may be the beginning of a stop string
        self.length, self.released, self.finish_reason = 0, 0, None

    def feed(self, token: int) -> str:
        """Decodes one more token and returns the text that has become certain."""
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
        """Ends the text and returns what was held back."""
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
    """The text that follows a prompt, as an iterator of pieces.

    Args:
        model: The network.
        tokenizer: The tokenizer that it was trained with.
        prompt: Token ids; empty for a text from the beginning of a document.
        how: How tokens are drawn.
        max_tokens: Most tokens to draw.
        stop: Strings that end the text and are not part of it.
        seed: Decides the draws.

    After the last piece, `finish_reason` is "stop" or "length" and `num_tokens` counts the tokens drawn.
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
