"""Decodes token ids into text, and returns only text that no later token can change."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_gpt.errors import UserError
from mlx_gpt.generation.decode import decode
from mlx_gpt.generation.sampling import Sampling


class TextWriter:
    """Decodes token ids one by one, and returns the part of the text that no later token can change.

    The end of the text is held back for two reasons:

    * A token may end inside a UTF-8 character. The character's first bytes are held until the rest arrives.
    * The last characters may be the beginning of a stop string, and stop strings are not part of the text. If the
      longest stop string has n characters, the last n - 1 characters are held.

    With stop=("END",), the tokens "a", "bE", "N", "Dc" give:

        feed("a")  -> ""     "a" is held back: the last two characters always wait
        feed("bE") -> "a"    "bE" is held back
        feed("N")  -> "b"    "EN" is held back
        feed("Dc") -> ""     "END" ends the text before "END"; finish_reason is "stop"

    Args:
        tokenizer: The tokenizer. Its `pieces` are the bytes of each id; its `eos_id` ends a text.
        stop: Strings that end the text.

    Attributes:
        finish_reason: None until the text ends; "stop" after a stop string or `eos_id`, "length" after end().
        length: Number of characters so far, including those held back.
        released: Number of characters returned so far.

    Raises:
        UserError: A stop string is empty.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        if not all(stop):
            raise UserError("an empty stop string would end every text at once; leave it out")
        self.tokenizer, self._stop = tokenizer, stop
        self._longest = max(map(len, stop), default=1)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds the bytes of incomplete characters
        self._held = ""  # the last characters, which wait because of stop strings
        self.length, self.released, self.finish_reason = 0, 0, None

    def feed(self, token: int) -> str:
        """Decodes one more token and returns the text that can no longer change.

        When the text ends, this includes the characters held back until then, except a stop string and what follows it.
        Bytes of an incomplete character are dropped.
        """
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
        """Ends the text and returns what was held back. Bytes of an incomplete character become U+FFFD."""
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
    """The text that follows a prompt, as an iterable of pieces. It can be iterated once.

    After the last piece, `finish_reason` is "stop" or "length", and `num_tokens` is the number of tokens drawn.

    Args:
        model: The network.
        tokenizer: The tokenizer that the network was trained with.
        prompt: Token ids. If there are none, the text begins like a document.
        how: Sampling parameters.
        max_tokens: Maximum number of tokens to draw.
        stop: Strings that end the text. They are not part of it.
        seed: Seed of the random draws.

    Raises:
        UserError: `max_tokens` is negative, or a stop string is empty. An id of the prompt that is out of range raises
            it at the first piece.
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
            raise UserError(f"max_tokens={self.max_tokens} is not allowed; give 0 or more")
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
