"""`load` loads a model. `generate` and `stream` generate text with it."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from mlx_gpt.data.fim import prompt_ids, require_fim
from mlx_gpt.errors import UserError
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.text import TextStream
from mlx_gpt.run.loading import Run, load, require_run

__all__ = ["Run", "generate", "load", "stream"]


def generate(
    run: Run,
    prompt: str = "",
    *,
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    stop_token_ids: Collection[int] = (),
    suffix: str | None = None,
) -> Iterator[str]:
    """Generates the text that follows a prompt, or the text between a prompt and a suffix.

    Args:
        run: A model from `load`.
        prompt: The text to continue. If it is empty, generation starts from BOS, as at the beginning of a document.
        max_tokens: Maximum number of tokens to generate.
        temperature: The logits are divided by this number, 0 to 100. With 0, the most likely token is always taken.
        top_p: Nucleus sampling, above 0 to 1: sample from the smallest set of most likely tokens whose probabilities
            add up to top_p or more. 1 keeps all tokens.
        top_k: Sample from the k most likely tokens; 0 keeps all tokens.
        min_p: Sample from the tokens whose probability is at least this share of that of the most likely token, 0 to 1.
            0 keeps all tokens.
        repetition_penalty: Makes tokens that the prompt or the text has less likely if it is above 1, 0.01 to 100. 1
            changes nothing.
        frequency_penalty: Subtracted from the logit of a token each time the text has it, -2 to 2.
        presence_penalty: Subtracted once from the logit of each token that the text has, -2 to 2.
        logit_bias: Added to the logits: values from -100 to 100 by token id.
        seed: Seed of the random numbers. The same arguments and seed give the same text.
        suffix: The text that follows the generated text. The model must have been trained with data.fim_rate.
        stop: A string or strings that end the text. The string that ended the text is not part of it.
        stop_token_ids: Token ids that end the text, in addition to EOS. They are not part of it.

    Returns:
        An iterator over the pieces of the generated text, without the prompt. Text is held back while a later token can
        change it: its last character may still lack bytes, or its end may be the beginning of a stop string.

    Raises:
        UserError: An argument is out of range, the run has no tokenizer, or the prompt has a character, or an argument
            a token id, that is not in its vocabulary. The error is raised by the call, before the iterator is returned.
    """
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logit_bias=logit_bias or {},
    )
    return iter(stream(run, prompt, sampling, max_tokens, stop, seed, stop_token_ids, suffix))


def stream(
    run: Run,
    prompt: str,
    sampling: Sampling,
    max_tokens: int,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    stop_token_ids: Collection[int] = (),
    suffix: str | None = None,
) -> TextStream:
    """Like `generate`, with the sampling arguments as a Sampling.

    Returns:
        A TextStream, an iterable of the pieces of text. After the last piece, its `num_tokens` is the number of
        generated tokens, and its `finish_reason` is "stop" (a stop string, a stop token or EOS) or "length"
        (max_tokens).
    """
    require_run(run)
    if run.tokenizer is None:
        raise UserError(
            "the checkpoint has no tokenizer; give the text it was trained on with --corpus, or its vocabulary with "
            "--vocab"
        )
    ids = _encoded(run, "prompt", prompt)
    if suffix is not None:
        require_fim(run.tokenizer, "suffix")
        ids = prompt_ids(ids, _encoded(run, "suffix", suffix), run.tokenizer.fim_ids)
        if len(ids) >= run.config.model.block_size:
            raise UserError(
                f"the prompt and the suffix have {len(ids)} tokens with their three special tokens, but the context of "
                f"the model has {run.config.model.block_size}; shorten them"
            )
    return TextStream(
        model=run.model,
        tokenizer=run.tokenizer,
        prompt=ids,
        how=sampling,
        max_tokens=max_tokens,
        stop=tuple([stop] if isinstance(stop, str) else stop),
        seed=seed,
        stop_token_ids=tuple(stop_token_ids),
    )


def _encoded(run: Run, name: str, text: str) -> list[int]:
    """Returns the ids of a text. Raises UserError, which names the argument, if it is no text or cannot be encoded."""
    if not isinstance(text, str):
        raise UserError(f"{name}={text!r} is not allowed; give a string")
    try:
        return run.tokenizer.encode(text).tolist()
    except UserError as error:
        raise UserError(f"{name}: {error}; use characters of the training text") from None
