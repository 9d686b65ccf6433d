"""Decodes token ids into text, and returns only text that no later token can change."""

import codecs
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mlx_gpt.errors import UserError
from mlx_gpt.generation.decode import decode, require_ids
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
        stop_token_ids: Further ids that end the text, like `eos_id`. They are not part of it.

    Attributes:
        finish_reason: None until the text ends; "stop" after a stop string, `eos_id` or one of `stop_token_ids`,
            "length" after end().
        length: Number of characters so far, including those held back.
        released: Number of characters returned so far.

    Raises:
        UserError: A stop string is empty, or an id of `stop_token_ids` is not in the vocabulary.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = (), stop_token_ids: Collection[int] = ()):
        if not all(stop):
            raise UserError("an empty stop string would end every text at once; leave it out")
        require_ids(stop_token_ids, tokenizer.vocab_size, "stop_token_ids")
        self.tokenizer, self._stop, self._stop_ids = tokenizer, stop, {tokenizer.eos_id, *stop_token_ids}
        self._longest = max(map(len, stop), default=1)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds the bytes of incomplete characters
        self._held = ""  # the last characters, which wait because of stop strings
        self.length, self.released, self.finish_reason = 0, 0, None

    def feed(self, token: int) -> str:
        """Decodes one more token and returns the text that can no longer change.

        When the text ends, this includes the characters held back until then, except a stop string and what follows it.
        Bytes of an incomplete character are dropped.
        """
        if token in self._stop_ids:
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
        stop_token_ids: Ids that end the text, in addition to EOS. They are not part of it.

    Raises:
        UserError: `max_tokens` is negative, a stop string is empty, or an id of `stop_token_ids` or of logit_bias is
            not in the vocabulary. An id of the prompt that is out of range raises it at the first piece.
    """

    model: object
    tokenizer: object
    prompt: Sequence[int]
    how: Sampling
    max_tokens: int
    stop: Sequence[str] = ()
    seed: int = 0
    stop_token_ids: Collection[int] = ()
    num_tokens: int = 0

    def __post_init__(self):
        if self.max_tokens < 0:
            raise UserError(f"max_tokens={self.max_tokens} is not allowed; give 0 or more")
        require_ids(self.how.logit_bias, self.tokenizer.vocab_size, "logit_bias")
        self._writer = TextWriter(self.tokenizer, self.stop, self.stop_token_ids)

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
