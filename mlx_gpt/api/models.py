"""`load` and `generate`: loads models and generates text with them."""

from collections.abc import Iterator, Sequence

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
    seed: int = 0,
    stop: str | Sequence[str] = (),
) -> Iterator[str]:
    """Generates the text that follows a prompt.

    Args:
        run: A model from `load`.
        prompt: The text to continue. After an empty prompt, the text begins like a document.
        max_tokens: Maximum number of tokens.
        temperature: Divides the logits. 0 takes the most likely token.
        top_p: Sample from the most likely tokens whose probabilities add up to this.
        top_k: Sample from the k most likely tokens; 0 keeps all.
        seed: The same seed gives the same text.
        stop: Strings that end the text. They are not part of it.

    Returns:
        An iterator over the pieces of the text. Each is yielded as soon as it is final.

    Raises:
        UserError: An argument is out of range, or the prompt has a character that the model does not know.
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    return iter(stream(run, prompt, sampling, max_tokens, stop, seed))


def stream(
    run: Run, prompt: str, sampling: Sampling, max_tokens: int, stop: str | Sequence[str] = (), seed: int = 0
) -> TextStream:
    """Like `generate`. The TextStream also has the number of tokens and the reason why the text ended."""
    require_run(run)
    if not isinstance(prompt, str):
        raise UserError(f"prompt={prompt!r} is not allowed; give a string")
    if run.tokenizer is None:
        raise UserError(
            "the checkpoint has no tokenizer; give the text it was trained on with --corpus, or its vocabulary with "
            "--vocab"
        )
    try:
        ids = run.tokenizer.encode(prompt).tolist()
    except UserError as error:
        raise UserError(f"prompt: {error}; use characters of the training text") from None
    return TextStream(
        model=run.model,
        tokenizer=run.tokenizer,
        prompt=ids,
        how=sampling,
        max_tokens=max_tokens,
        stop=tuple([stop] if isinstance(stop, str) else stop),
        seed=seed,
    )
