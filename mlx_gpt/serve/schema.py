"""The types of requests, and their conversion to jobs of the scheduler.

There are three types: OpenAI's completions, OpenAI's chat completions, and randyGPT's form. Every error about a field
names it.
"""

import dataclasses
import math
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from mlx_gpt.errors import UserError
from mlx_gpt.generation.decode import require_ids
from mlx_gpt.generation.job import Job
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.text import TextWriter
from mlx_gpt.web.errors import bad, cut

TURN = "{role}:\n{content}\n\n"  # the chat template, for one message
TURN_END = "\n\n"  # generation of a chat message stops here
ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
MAX_STOPS, MAX_STOP_CHARS = 16, 256

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request.

    Attributes:
        max_tokens: Maximum number of tokens per text.
        max_choices: Maximum number of texts: n times the number of prompts. The slots and the queue limit it further.
        max_prompt_chars: Maximum number of characters, or of ids, of a prompt.
        max_body: Maximum size of the body in bytes.
        slides: What happens at the end of the context. True continues from the newer half of the context. False refuses
            requests whose prompt and `max_tokens` do not fit into the context.
    """

    max_tokens: int = 4096
    max_choices: float = math.inf
    max_prompt_chars: int = 100_000
    max_body: int = 1 << 20
    slides: bool = True


class StreamOptions(msgspec.Struct):
    """Options of a streamed response. A response that is not streamed ignores them."""

    include_usage: bool | None = None


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """The fields that completions and chats share."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[Count, float] | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Count] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """One message of a chat."""

    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])


class ChatRequest(Request, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None


class RandyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /, with randyGPT's defaults. The text of the response begins with the prompt."""

    prompt: str
    max_tokens: Count = 2048
    temperature: float = 0.7
    top_p: float = 0.9


class Reader:
    """Converts requests for one model to jobs. All methods raise ApiError with status 400 for invalid requests.

    Args:
        tokenizer: The tokenizer of the model.
        block_size: The length of the model's context in tokens.
        limits: Limits of one request.
    """

    def __init__(self, tokenizer, block_size: int, limits: Limits):
        self.tokenizer, self.block_size, self.limits = tokenizer, block_size, limits

    def completion(self, request: CompletionRequest) -> list[Job]:
        """The jobs of a completion: n for each prompt."""
        prompts = _prompts(request.prompt)
        echo, scored = bool(request.echo), bool(request.echo) and request.logprobs is not None
        options = {"default": 16, "echo": echo, "scored": scored, "alternatives": request.logprobs or 0}
        return self._jobs(prompts, request, request.max_tokens, **options)

    def chat(self, request: ChatRequest) -> list[Job]:
        """The jobs of a chat: n for one prompt. The prompt is all messages, then "Assistant:" and a newline."""
        if request.top_logprobs and not request.logprobs:
            raise bad("top_logprobs", "top_logprobs is allowed only with logprobs; set logprobs to true")
        prompt = "".join(self._turn(i, message) for i, message in enumerate(request.messages))
        prompt += TURN.partition("{content}")[0].format(role=ROLES["assistant"])
        both = {request.max_tokens, request.max_completion_tokens} - {None}
        if len(both) > 1:
            raise bad("max_tokens", "max_tokens and max_completion_tokens differ; give one")
        max_tokens = both.pop() if both else None
        options = {"default": self.block_size, "stop": (TURN_END,), "alternatives": request.top_logprobs or 0}
        return self._jobs([prompt], request, max_tokens, **options, name="messages")

    def _turn(self, index: int, message: Message) -> str:
        name = f"messages[{index}]"
        if message.role not in ROLES:
            shown = cut(repr(message.role))
            raise bad(f"{name}.role", f"{name}.role={shown} is not allowed; choose from {', '.join(ROLES)}")
        parts = message.content if isinstance(message.content, list) else []
        for part in parts:
            if part.type != "text":
                shown = cut(repr(part.type))
                raise bad(f"{name}.content", f"{name}.content: type {shown} is not supported; send text")
        if message.content is None and message.role != "assistant":
            raise bad(f"{name}.content", f"{name}.content is missing; give a text")
        return TURN.format(role=ROLES[message.role], content=message.text)

    def randy(self, request: RandyRequest) -> list[Job]:
        """The job of a request in randyGPT's form."""
        fields = Request(temperature=request.temperature, top_p=request.top_p)
        return self._jobs([request.prompt], fields, request.max_tokens, echo=True)

    def _jobs(
        self,
        prompts: Sequence[str | list[int]],
        request: Request,
        max_tokens: int | None,
        default: int = 0,
        stop: Sequence[str] = (),
        echo: bool = False,
        scored: bool = False,
        alternatives: int = 0,
        name: str = "prompt",
    ) -> list[Job]:
        """Makes n jobs for each prompt. Prompts are encoded after everything that can be checked without their ids.

        Args:
            prompts: Each prompt, as text or as token ids.
            request: The fields that all requests share.
            max_tokens: Maximum number of tokens per text, or None if the request does not give it.
            default: Used if `max_tokens` is None, and reduced to what the limits and the context allow.
            stop: Strings that end a text, in addition to those of the request.
            echo: Whether each text begins with its prompt.
            scored: Whether the log-probabilities of the prompt's tokens are returned.
            alternatives: Number of most likely tokens that are returned with each token.
            name: The field of the request that has the prompts.

        Raises:
            ApiError: The request exceeds a limit, or a value is not allowed.
        """
        n, limits = request.n or 1, self.limits
        if n * len(prompts) > limits.max_choices:
            asked = f"n: {n * len(prompts)} texts in one request"
            raise bad(
                "n", f"{asked}, at most {limits.max_choices} are allowed; lower n or send fewer prompts", "too_large"
            )
        if (max_tokens or 0) > limits.max_tokens:
            allowed = f"0 to {limits.max_tokens:,}"
            raise bad("max_tokens", f"max_tokens={max_tokens:,} is not allowed; give {allowed}", "too_large")
        sampling, stop, seed = _sampling(request), (*_stops(request.stop), *stop), request.seed
        stop_token_ids = request.stop_token_ids or []
        self._require_ids(sampling.logit_bias, "logit_bias")
        self._require_ids(stop_token_ids, "stop_token_ids")
        seed = secrets.randbits(32) if seed is None else seed
        encoded = [self._ids(prompt, name) for prompt in prompts]
        rooms = [self._room(ids, 1 if max_tokens is None else max_tokens) for ids in encoded]
        return [
            Job(
                prompt=ids,
                sampling=sampling,
                seed=seed + i,
                max_tokens=min(default, limits.max_tokens, room) if max_tokens is None else max_tokens,
                writer=TextWriter(self.tokenizer, stop, stop_token_ids),
                echo=self.tokenizer.decode(ids) if echo else "",
                scored=scored,
                alternatives=alternatives,
            )
            for ids, room in zip(encoded, rooms, strict=True)
            for i in range(n)
        ]

    def _room(self, ids: list[int], needed: int) -> int:
        """The maximum number of tokens that can follow a prompt. Raises ApiError if it is less than `needed`."""
        # A sliding context has no limit. 2^31 stands for it.
        room = 1 << 31 if self.limits.slides else self.block_size - len(ids)
        if room < needed:
            raise bad(
                "prompt",
                f"the prompt has {len(ids)} tokens and {needed} are to be generated, but the context holds "
                f"{self.block_size}; "
                "shorten the prompt or lower max_tokens",
                "context_length_exceeded",
                n_prompt_tokens=len(ids),
                n_ctx=self.block_size,
            )
        return room

    def _ids(self, prompt: str | list[int], name: str) -> list[int]:
        limit = self.limits.max_prompt_chars
        if len(prompt) > limit:
            long = f"{name}: has {len(prompt):,} characters or ids, at most {limit:,} are allowed; shorten it"
            raise bad(name, long, "string_above_max_length")
        try:
            ids = self.tokenizer.encode(prompt).tolist() if isinstance(prompt, str) else prompt
            ids = ids or [self.tokenizer.bos_id]
            require_ids(ids, self.tokenizer.vocab_size)
        except UserError as error:
            raise bad(name, f"{name}: {cut(str(error), 200)}; give characters and ids of the vocabulary") from None
        return ids

    def _require_ids(self, ids: Collection[int], name: str) -> None:
        try:
            require_ids(ids, self.tokenizer.vocab_size, name)
        except UserError as error:
            raise bad(name, str(error)) from None


def _prompts(prompt: Any) -> list[str | list[int]]:
    """The prompts. `prompt` is a text, a list of texts, a list of ids, or a list of lists of ids."""
    if not prompt:
        prompt = ""
    several = isinstance(prompt, list) and not all(isinstance(p, int) for p in prompt)
    prompts = prompt if several else [prompt]
    if len({type(p) for p in prompts}) > 1:
        raise bad("prompt", "prompt: texts and ids are mixed; give one kind")
    return prompts


def _sampling(request: Request) -> Sampling:
    given = {field.name: getattr(request, field.name) for field in dataclasses.fields(Sampling)}
    try:
        return Sampling(**{name: value for name, value in given.items() if value is not None})
    except UserError as error:
        raise bad(str(error).partition("=")[0], str(error)) from None


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS or not all(1 <= len(s) <= MAX_STOP_CHARS for s in stops):
        allowed = f"up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters"
        raise bad("stop", f"stop={ascii(stop)[:60]} is not allowed; give {allowed}")
    return stops
