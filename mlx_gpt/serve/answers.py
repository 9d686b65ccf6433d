"""The JSON of responses: OpenAI's completions and chat completions, whole or streamed, and randyGPT's form, whole."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from mlx_gpt.generation.job import Job, Piece, Token
from mlx_gpt.version import __version__


class Answer:
    """The JSON of one response. Base class of the three forms.

    A response is either sent as a whole, or streamed as a sequence of frames. A frame is the JSON object of one
    server-sent event.

    Args:
        request: The decoded request.
        jobs: The jobs of the request, in order. The `index` of a text in the JSON is an index into them.
        model: The id of the served model.
        token_bytes: The bytes of each token id.
    """

    # `object` of the JSON, the prefix of its `id`, what a frame appends to `object`, and `system_fingerprint`.
    object, prefix, frame_suffix, fingerprint = "", "", "", f"mlxgpt-{__version__}"

    def __init__(self, request: Any, jobs: Sequence[Job], model: str, token_bytes: Sequence[bytes]):
        self.request, self.jobs, self.model, self._token_bytes = request, jobs, model, token_bytes
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())

    def opening(self) -> list[dict]:
        """The frames to send before any text."""
        return []

    def frames(self, index: int, piece: Piece) -> list[dict]:
        """The frames for one piece of the text with number `index`. An empty piece has no frames."""
        if not (piece.text or piece.tokens or piece.finish_reason):
            return []
        return [self._outer([self._choice(index, piece)], streamed=True)]

    def whole(self, texts: Sequence[Piece]) -> dict:
        """The response if it is not streamed. `texts` has one merged piece for each job."""
        return self._outer([self._choice(i, text) for i, text in enumerate(texts)]) | {"usage": self.usage(texts)}

    def usage(self, texts: Sequence[Piece]) -> dict:
        """The numbers of tokens. A prompt counts once, even if several texts continue it."""
        # The n jobs of a prompt are adjacent, so every n-th job has another prompt.
        prompt_tokens = sum(len(job.prompt) for job in self.jobs[:: getattr(self.request, "n", None) or 1])
        completion_tokens = sum(text.num_drawn for text in texts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def closing(self, texts: Sequence[Piece]) -> list[dict]:
        """The frames to send after all text. `texts` has one piece for each job; only `num_drawn` is used."""
        if self._streams_usage:
            return [self._outer([], streamed=True) | {"usage": self.usage(texts)}]
        return []

    @property
    def _streams_usage(self) -> bool:
        options = self.request.stream_options
        return bool(options and options.include_usage)

    def _outer(self, choices: list[dict], streamed: bool = False) -> dict:
        """The object around `choices`. Its seed is that of the first of the n texts of each prompt."""
        return {
            "id": self.id,
            "object": self.object + self.frame_suffix * streamed,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "seed": self.jobs[0].seed,
            "choices": choices,
        } | ({"usage": None} if streamed and self._streams_usage else {})

    def _choice(self, index: int, piece: Piece) -> dict:
        raise NotImplementedError

    def _name(self, id: int) -> str:
        """A token as text. A token that is not valid UTF-8 by itself has OpenAI's form, as "bytes:\\xe2"."""
        try:
            return self._token_bytes[id].decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._token_bytes[id])


class CompletionAnswer(Answer):
    """OpenAI's response to POST /v1/completions."""

    object, prefix = "text_completion", "cmpl"

    def _choice(self, index: int, piece: Piece) -> dict:
        logprobs = None if self.request.logprobs is None else self._logprobs(piece.tokens)
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _logprobs(self, tokens: Sequence[Token]) -> dict:
        return {
            "tokens": [self._name(t.id) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": [t.offset for t in tokens],
        }

    def _top(self, token: Token) -> dict | None:
        """The log-probabilities of the most likely tokens and of `token`; None if token.logprob is None."""
        if token.logprob is None:
            return None
        return {self._name(id): logprob for id, logprob in [*token.top, (token.id, token.logprob)]}


class ChatAnswer(Answer):
    """OpenAI's response to POST /v1/chat/completions."""

    object, prefix, frame_suffix = "chat.completion", "chatcmpl", ".chunk"

    def opening(self) -> list[dict]:
        delta = {"role": "assistant", "content": ""}
        return [
            self._outer([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}], streamed=True)
            for i in range(len(self.jobs))
        ]

    def frames(self, index: int, piece: Piece) -> list[dict]:
        frames = []
        if piece.text or piece.tokens:
            choice = {"delta": {"content": piece.text}, "logprobs": self._logprobs(piece.tokens), "finish_reason": None}
            frames.append({"index": index} | choice)
        if piece.finish_reason:
            frames.append({"index": index, "delta": {}, "logprobs": None, "finish_reason": piece.finish_reason})
        return [self._outer([choice], streamed=True) for choice in frames]

    def _choice(self, index: int, piece: Piece) -> dict:
        return {
            "index": index,
            "message": {"role": "assistant", "content": piece.text, "refusal": None},
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": piece.finish_reason,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict | None:
        if not self.request.logprobs:
            return None
        return {
            "content": [
                self._entry(t.id, t.logprob) | {"top_logprobs": [self._entry(*pair) for pair in t.top]} for t in tokens
            ],
            "refusal": None,
        }

    def _entry(self, id: int, logprob: float) -> dict:
        return {"token": self._name(id), "logprob": logprob, "bytes": list(self._token_bytes[id])}


class RandyAnswer(Answer):
    """randyGPT's response to POST /."""

    def whole(self, texts: Sequence[Piece]) -> dict:
        usage = self.usage(texts)
        del usage["total_tokens"]
        return {"text": texts[0].text, "model": self.model, "usage": usage}
