"""`evaluate_code`: measures how well the code that a model writes parses, compiles and does what it should."""

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlx_gpt.code.evaluate import Draft, judge
from mlx_gpt.code.languages import LANGUAGES
from mlx_gpt.code.ngram import MAX_CHARACTERS, NGram
from mlx_gpt.code.problems import Problem
from mlx_gpt.code.report import Report, Samples
from mlx_gpt.code.settings import Settings
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import encode
from mlx_gpt.data.tokenizer import name_unknown
from mlx_gpt.device.report import prepare
from mlx_gpt.errors import UserError
from mlx_gpt.generation.job import Job
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.text import TextWriter
from mlx_gpt.generation.together import generate_all
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.packing import PACKED
from mlx_gpt.rl.sandbox import Limits, isolation
from mlx_gpt.run.loading import Run, require_context, require_run
from mlx_gpt.run.request import Note, ignore, specs_of

UNTRAINED, NGRAM = "untrained", "5-gram"  # the names of the baselines


def evaluate_code(
    run: Run,
    settings: Settings | None = None,
    *,
    baselines: bool = False,
    corpus: str | Path | Sequence[str | Path] | None = None,
    note: Note = ignore,
) -> Report:
    """Lets a model complete programs, and measures how well they parse, compile and do what they should.

    Nothing that the model writes is executed unless `settings.execute` is true.

    Args:
        run: A model from `load`.
        settings: What is evaluated, and how the samples are drawn. [default: Settings()]
        baselines: Whether the same network with its initial weights, and a character 5-gram model of the training text,
            are evaluated too, with the same settings.
        corpus: The text of the 5-gram model. [default: the corpus the model was trained on]
        note: Called with each message for the user, one line of text.

    Returns:
        A Report. Its `to_json(checkpoint)` has all numbers and samples.

    Raises:
        UserError: The run has no tokenizer or cannot encode any prompt, the training text is not known, or a setting is
            not allowed.
        BadFile: The file of problems or the corpus cannot be read.
        OutOfRoom: A full context of the model needs more memory than MLX may use.
    """
    require_run(run)
    settings = settings or Settings()
    if run.tokenizer is None:
        raise UserError("the checkpoint has no tokenizer; load it with the corpus or the vocab it was trained with")
    require_context(run)
    problems, left_out = _encodable(settings.open_problems(), run.tokenizer, note)
    _tell(problems, run, settings, note)
    prepare()
    text, num_tokens = _training_text(run, corpus, note) if baselines else ("", 0)
    note(f"drawing {len(problems) * settings.samples:,} samples of up to {settings.max_tokens:,} tokens")
    drawn = {"": _drafts(run.model, run.tokenizer, problems, settings)}
    if baselines:
        note("drawing the samples of the baselines")
        drawn[UNTRAINED] = _drafts(_untrained(run), run.tokenizer, problems, settings)
        drawn[NGRAM] = _ngram_drafts(text, problems, settings, len(text) / num_tokens)
    limits = Limits() if settings.execute else None
    judged = {
        name: Samples(
            samples=judge(drafts, LANGUAGES, limits), seconds=seconds, executed=settings.execute, ks=settings.ks
        )
        for name, (drafts, seconds) in drawn.items()
    }
    own = judged.pop("")
    return Report(settings=settings, step=run.header.step, model=own, baselines=judged, left_out=left_out)


def _encodable(problems: Sequence[Problem], tokenizer, note: Note) -> tuple[list[Problem], dict[str, str]]:
    """Returns the problems whose prompts the tokenizer can encode, and for each other one the characters it lacks."""
    found, left_out = [], {}
    for problem in problems:
        unknown: Counter = Counter()
        tokenizer.encode(problem.prompt, unknown)
        if unknown:
            left_out[problem.id] = f"characters that are not in the vocabulary: {name_unknown(unknown)}"
        else:
            found.append(problem)
    if not found:
        name, reason = next(iter(left_out.items()))
        raise UserError(
            f"the tokenizer can encode no prompt; {name} has {reason}; use a model that was trained on code"
        )
    if left_out:
        note(f"left out: {len(left_out)} of {len(problems)} prompts have characters that the tokenizer does not know")
    return found, left_out


def _tell(problems: Sequence[Problem], run: Run, settings: Settings, note: Note) -> None:
    """Tells what limits the results: languages without a compiler, short contexts; and what is executed how."""
    for name in dict.fromkeys(problem.language for problem in problems):
        reason = LANGUAGES[name].missing()
        if reason and settings.execute:
            raise UserError(f"{name} programs cannot be executed: {reason}; or leave out --execute")
        if reason:
            note(f"{name}: programs are parsed, but not compiled: {reason}")
    block_size = run.config.model.block_size
    long = sum(len(run.tokenizer.encode(problem.prompt)) > block_size for problem in problems)
    if long:
        note(f"the context has {block_size} tokens, fewer than {long} of {len(problems)} prompts; their ends are read")
    if settings.execute:
        note("programs that the model wrote are executed, with the tests of their problems")
        for line in str(isolation()).splitlines():
            note(line)


def _drafts(model, tokenizer, problems: Sequence[Problem], settings: Settings) -> tuple[list[Draft], float]:
    """Draws the samples of a model. Returns them, ordered by problem, and the seconds that it took."""
    sampling = Sampling(temperature=settings.temperature, top_p=1.0, top_k=settings.top_k)
    asked = [(problem, _seed(settings.seed, problem, i)) for problem in problems for i in range(settings.samples)]
    jobs = [
        Job(
            prompt=tokenizer.encode(problem.prompt).tolist(),
            sampling=sampling,
            seed=seed,
            max_tokens=settings.max_tokens,
            writer=TextWriter(tokenizer),
        )
        for problem, seed in asked
    ]
    begin = time.perf_counter()
    texts = generate_all(model, jobs)
    seconds = time.perf_counter() - begin
    drafts = [
        Draft(problem=problem, seed=seed, text=t.text, num_tokens=t.num_drawn, finish_reason=t.finish_reason)
        for (problem, seed), t in zip(asked, texts, strict=True)
    ]
    return drafts, seconds


def _ngram_drafts(
    text: str, problems: Sequence[Problem], settings: Settings, token_length: float
) -> tuple[list[Draft], float]:
    """Draws the samples of the 5-gram model. Each is as long as `max_tokens` tokens of the training text on average."""
    model, length = NGram(text), max(round(settings.max_tokens * token_length), 1)
    drafts, begin = [], time.perf_counter()
    for problem in problems:
        for i in range(settings.samples):
            seed = _seed(settings.seed, problem, i)
            written = model.generate(problem.prompt, length, settings.temperature, settings.top_k, seed)
            drafts.append(Draft(problem=problem, seed=seed, text=written, num_tokens=length, finish_reason="length"))
    return drafts, time.perf_counter() - begin


def _seed(seed: int, problem: Problem, index: int) -> int:
    """Returns the seed of a sample, from 0 to 2^32 - 1. It depends on no other problem."""
    digest = hashlib.sha256(f"{seed}/{index}/{problem.language}/{problem.prompt}".encode()).digest()
    return int.from_bytes(digest[:4])


def _untrained(run: Run) -> GPT:
    """Returns the network of a run with the initial weights of its seed."""
    config = run.config.model
    if config.linear == PACKED:
        config = dataclasses.replace(config, linear="ternary")
    return GPT(config, run.header.vocab_size, run.config.train.seed)


def _training_text(run: Run, corpus: str | Path | Sequence[str | Path] | None, note: Note) -> tuple[str, int]:
    """Returns the beginning of the training split as text, at most MAX_CHARACTERS tokens, and its number of tokens."""
    if corpus is None and run.header.corpus is None:
        raise UserError(
            "the 5-gram baseline needs the training text, which the checkpoint does not name; name it with --corpus"
        )
    data = run.config.data
    text = open_corpus(specs_of(corpus or data.corpus))
    if corpus is None and text.fingerprint != run.header.corpus:
        note(f"corpus {text.name}: has changed since the training; the 5-gram model is fitted on what it is now")
    train, _ = encode(text, run.tokenizer, note, data.unknown == "refuse").split(data.val_fraction)
    parts, left = [], MAX_CHARACTERS
    for begin, length in zip(train.begins.tolist(), train.lengths.tolist(), strict=True):
        parts.append(train.ids.host[begin : begin + min(length, left)])
        left -= len(parts[-1])
        if not left:
            break
    ids = np.concatenate(parts).tolist() if parts else []
    if not ids:
        raise UserError(f"corpus {text.name}: has no training text; give a longer one with --corpus")
    return run.tokenizer.decode(ids), len(ids)
