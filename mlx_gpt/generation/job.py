"""A text to generate, and the pieces in which it is delivered."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mlx_gpt.generation.penalties import Penalties, penalties_of
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.text import TextWriter


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text. Log-probabilities are the model's own, before every option of sampling, in nats."""

    id: int
    logprob: float | None  # None for a token of the prompt that the model did not predict
    top: list[tuple[int, float]]  # the job's alternatives: ids and their log-probabilities, in descending order
    offset: int = 0  # index of the token's first character in the delivered text, echo included
    sampled: float | None = None  # the log-probability at the temperature of the draw, before its other options


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a text. Only the last piece of a text has a finish_reason or an error."""

    text: str = ""
    tokens: tuple[Token, ...] = ()  # tokens that can be delivered with this piece, see Job.take
    num_drawn: int = 0  # number of tokens drawn since the previous piece; their text may still be held back
    finish_reason: str | None = None  # "stop" or "length"
    error: str | None = None


def merge(pieces: Sequence[Piece]) -> Piece:
    """Joins consecutive pieces of one text, at least one, into one piece."""
    return Piece(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        num_drawn=sum(piece.num_drawn for piece in pieces),
        finish_reason=pieces[-1].finish_reason,
        error=pieces[-1].error,
    )


@dataclass(eq=False, kw_only=True)
class Job:
    """One text to generate.

    Args:
        prompt: Token ids, at least one.
        sampling: Sampling parameters.
        seed: Seed of the draws. The text depends on the seed, the prompt and `sampling`, not on other jobs.
        max_tokens: Maximum number of tokens to draw. 0 draws none.
        writer: Converts the drawn ids into text, and detects the end of the text.
        echo: Text to deliver before the first token: the text of the prompt, or "".
        scored: Whether the echo is delivered with the prompt's tokens and their log-probabilities.
        alternatives: Number of most likely ids that are delivered with each token, at most slots.MAX_ALTERNATIVES.

    The other fields are the scheduler's own state of the job.
    """

    prompt: list[int]
    sampling: Sampling
    seed: int
    max_tokens: int
    writer: TextWriter
    echo: str = ""
    scored: bool = False
    alternatives: int = 0
    cancelled: bool = False
    launched: int = 0  # number of tokens drawn, including those that the device is still computing
    position: int = 0  # number of tokens that the layer states of the slot hold
    drawn: list[int] = field(default_factory=list)  # ids of the drawn tokens that the host has read
    logprobs: list[float] = field(default_factory=list)  # of the tokens in `drawn`, see Token.sampled
    penalties: Penalties | None = field(init=False)  # with the tokens in `drawn`
    _held: list[tuple[Token, int]] = field(default_factory=list)  # undelivered: (token, writer.length after it)

    def __post_init__(self):
        self.penalties = penalties_of(self.sampling, self.prompt, self.writer.tokenizer.vocab_size)

    def window(self, length: int) -> list[int]:
        """The last `length` tokens of the text so far: the prompt, followed by the drawn tokens."""
        return (self.prompt + self.drawn)[-length:]

    def take(self, token: Token) -> Piece:
        """Adds a drawn token. Returns the text and the tokens that can be delivered now.

        If there are stop strings, the last characters of the text are held back (see TextWriter). While the text goes
        on, a token is delivered once every character that was complete when the token was added has been released. When
        the text ends, undelivered tokens that begin at or after its end are dropped: EOS, tokens that a stop string
        removes entirely, and tokens that completed no character.
        """
        writer, begin = self.writer, self.writer.length
        self.drawn.append(token.id)
        self.logprobs.append(token.sampled)
        if self.penalties:
            self.penalties.add(token.id)
        text = writer.feed(token.id)
        if len(self.drawn) == self.max_tokens:
            text += writer.end()
        self._held.append((replace(token, offset=len(self.echo) + begin), writer.length))
        if self.over:
            certain = [token for token, _ in self._held if token.offset < len(self.echo) + writer.length]
        else:
            certain = [token for token, end in self._held if end <= writer.released]
        self._held = self._held[len(certain) :]
        return Piece(text, tuple(certain), num_drawn=1, finish_reason=writer.finish_reason)

    def prompt_offsets(self) -> list[int]:
        """The index of the first character of each token of the prompt."""
        writer = TextWriter(self.writer.tokenizer)
        return [(writer.length, writer.feed(id))[0] for id in self.prompt]  # the length before each token

    @property
    def over(self) -> bool:
        """Whether the job has ended or was cancelled."""
        return self.cancelled or self.writer.finish_reason is not None
