"""The source of batches of reinforcement learning: texts that the model writes, and their rewards.

A batch has `rl.prompts_per_batch` prompts, in an order that depends on the seed, and `rl.group_size` texts after each
of them. It is drawn with the present weights, and `rl.epochs` updates are made with it.

Shapes: B rollouts in a batch, T tokens of a prompt and its rollout, a multiple of 64.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from mlx.utils import tree_map

from mlx_gpt import rng
from mlx_gpt.checkpoint.container import read_header, read_tensors
from mlx_gpt.code.languages import language_of
from mlx_gpt.code.problems import Problem
from mlx_gpt.config.schema import Config
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.generation.job import Job
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.text import TextWriter
from mlx_gpt.generation.together import Together
from mlx_gpt.model.gpt import GPT
from mlx_gpt.parse import parse_json
from mlx_gpt.rl.objectives import Rollouts, successes
from mlx_gpt.rl.rewards import Parts, Reward
from mlx_gpt.train.objective import cross_entropy

REFERENCE, SAMPLES = "reference.safetensors", "rollouts.jsonl"
LENGTHS = 64  # the length of a batch is a multiple of this, so that few shapes are compiled
MAX_SKIPPED = 50  # batches in a row without a success
NUM_SLOTS = 16


class RolloutSource:
    """Batches of rollouts. See train.source.Source.

    The folder of the run gets the weights of the reference, and a line for each text with its reward.

    Args:
        config: The settings of the run.
        tokenizer: The tokenizer of the model.
        problems: The prompts.
        reward: Rewards the texts.
        advantages: Converts rewards to advantages, as `PerToken.advantages` does.
        needs_success: Whether a batch whose advantages are all 0 is skipped.
        reference: The weights of the reference, or None to read them from the folder.
        num_tokens: Number of tokens in the training split of the corpus, which is not read.
        folder: The folder of the run. It need not exist before the first batch.
        note: Called with one line for each thing the user should know.
    """

    def __init__(
        self,
        *,
        config: Config,
        tokenizer,
        problems: Sequence[Problem],
        reward: Reward,
        advantages: Callable[[np.ndarray, Config], np.ndarray],
        needs_success: bool,
        reference: dict[str, mx.array] | None,
        num_tokens: int,
        folder: Path,
        note: Callable[[str], None],
    ):
        self._config, self._tokenizer, self._problems = config, tokenizer, list(problems)
        self._reward, self._advantages, self._needs_success = reward, advantages, needs_success
        self._folder, self._samples, self._note = folder, folder / SAMPLES, note
        self._leave_out()
        self._reference = reference
        self._model = GPT(config.model, tokenizer.vocab_size, speed=config.speed)
        self._logprobs = mx.compile(self._log_probabilities)
        self._writer: Together | None = None
        self._drawn = self._updates = 0  # batches drawn so far, and updates made with the last one
        self._batch: list[np.ndarray] | None = None
        self.metrics: dict[str, float] = {}
        self.num_tokens = num_tokens

    @property
    def tokens_per_batch(self) -> int:
        """Number of tokens in the last batch, padding included."""
        return self._batch[0].size if self._batch else 0

    # -- the place in the sequence ----------------------------------------------------------------------------------

    @property
    def position(self) -> dict[str, Any]:
        """The number of batches drawn, and the last batch if more updates are to be made with it."""
        found: dict[str, Any] = {"drawn": self._drawn, "updates": self._updates}
        if self._updates % self._config.rl.epochs:
            found["batch"] = [{"dtype": str(a.dtype), "rows": a.tolist()} for a in self._batch]
        return found

    def seek(self, position: dict[str, Any]) -> None:
        counts = [position.get(name) for name in ("drawn", "updates")]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise BadFile(
                f"the checkpoint's position, {str(position)[:60]!r}, is not one of rollouts; use an earlier checkpoint"
            )
        self._drawn, self._updates = counts
        if "batch" in position:
            self._batch = [np.array(a["rows"], a["dtype"]) for a in position["batch"]]
        self._forget_samples()

    # -- batches ----------------------------------------------------------------------------------------------------

    def next(self, step: int, weights: dict[str, mx.array]) -> list[np.ndarray]:
        """Returns the arrays of the fields of `Rollouts`. See `Source.next`."""
        if self._updates % self._config.rl.epochs == 0:
            self._batch = self._draw(weights)
        self._updates += 1
        return self._batch

    def gather(self, *arrays: mx.array) -> Rollouts:
        return Rollouts(*arrays)

    def _draw(self, weights: dict[str, mx.array]) -> list[np.ndarray]:
        """Draws a batch with these weights, and further ones as long as they have no success but need one."""
        weights = tree_map(lambda w: w.astype(mx.float32), weights)
        mx.eval(weights)
        self._begin(weights)
        for _ in range(MAX_SKIPPED):
            batch = self._attempt()
            if not self._needs_success or batch[-1].any():
                return batch
        raise UserError(
            f"no text of {MAX_SKIPPED} batches in a row had a reward of rl.success={self._config.rl.success:g}; lower "
            "it, or begin with another objective, such as grpo"
        )

    def _begin(self, weights: dict[str, mx.array]) -> None:
        """Gives the weights to the scheduler, which is started for the first batch."""
        path = self._folder / REFERENCE
        if self._reference is None:
            self._reference = _read_weights(path, weights)
        elif not path.exists():
            tensors = {name: np.array(w) for name, w in self._reference.items()}
            write_atomic(path, [safetensors.numpy.save(tensors)])
        if self._writer is None:
            self._model.set_weights(weights)
            rl = self._config.rl
            self._writer = Together(self._model, NUM_SLOTS, rl.prompts_per_batch * rl.group_size)
        else:
            self._writer.update(weights)

    def _attempt(self) -> list[np.ndarray]:
        """Draws one batch of texts and rewards them."""
        rl, start = self._config.rl, time.perf_counter()
        chosen = self._chosen(self._drawn)
        rows = [index for index in chosen for _ in range(rl.group_size)]
        jobs = [self._job(index, seed) for index, seed in zip(rows, self._seeds(self._drawn), strict=True)]
        texts = [piece.text for piece in self._writer.write(jobs)]
        drawn = time.perf_counter()
        parts = self._reward([self._problems[index] for index in rows], texts)
        scored = time.perf_counter()
        rewards = np.array([sum(part.values()) for part in parts])
        advantages = self._advantages(rewards.reshape(len(chosen), -1), self._config).reshape(-1)
        self._record(rows, texts, parts, advantages)
        self._measure(jobs, texts, parts, {"seconds.drawing": drawn - start, "seconds.scoring": scored - drawn})
        self._drawn += 1
        return self._arrays(jobs, advantages)

    def _chosen(self, drawn: int) -> list[int]:
        """The indices of the prompts of a batch. Every pass over the prompts has a new order."""
        count, size, seed = len(self._prompts), self._config.rl.prompts_per_batch, self._config.train.seed
        places = [divmod(place, count) for place in range(drawn * size, (drawn + 1) * size)]  # (pass, place in it)
        keys = {n: rng.host_bits(seed, rng.PROMPTS, n, count) for n in {n for n, _ in places}}
        orders = {n: np.argsort(key, kind="stable").tolist() for n, key in keys.items()}
        return [orders[n][place] for n, place in places]

    def _seeds(self, drawn: int) -> list[int]:
        count = self._config.rl.prompts_per_batch * self._config.rl.group_size
        return rng.host_bits(self._config.train.seed, rng.ROLLOUTS, drawn, count).tolist()

    def _job(self, index: int, seed: int) -> Job:
        rl = self._config.rl
        return Job(
            prompt=list(self._prompts[index]),
            sampling=Sampling(temperature=rl.temperature, top_p=1.0),
            seed=seed,
            max_tokens=rl.max_tokens,
            writer=TextWriter(self._tokenizer, language_of(rl.language).stops),
        )

    def _arrays(self, jobs: Sequence[Job], advantages: np.ndarray) -> list[np.ndarray]:
        """The arrays of a batch. A row has a prompt and its text, and zeros after them."""
        longest = max(len(job.prompt) + len(job.drawn) for job in jobs) - 1
        T = min(-(-longest // LENGTHS) * LENGTHS, self._config.model.block_size)
        ids, mask, old = np.zeros((len(jobs), T + 1), np.int32), *np.zeros((2, len(jobs), T), np.float32)
        for i, job in enumerate(jobs):
            tokens, first = job.prompt + job.drawn, len(job.prompt) - 1
            ids[i, : len(tokens)] = tokens
            mask[i, first : len(tokens) - 1] = 1
            old[i, first : len(tokens) - 1] = job.logprobs
        inputs, targets = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
        size = self._config.train.batch_size
        pieces = [(inputs[i : i + size], targets[i : i + size]) for i in range(0, len(jobs), size)]
        found = [np.array(self._logprobs(self._reference, *map(mx.array, piece))) for piece in pieces]
        return [inputs, targets, mask, old, np.concatenate(found), advantages.astype(np.float32)]

    def _log_probabilities(self, weights: dict[str, mx.array], inputs: mx.array, targets: mx.array) -> mx.array:
        weights = self._model.cast(weights, self._config.train.dtype)
        logits, _ = self._model.apply(weights, inputs)
        return -cross_entropy(logits.astype(mx.float32) / self._config.rl.temperature, targets)

    # -- metrics and samples of a batch -----------------------------------------------------------------------------

    def _measure(self, jobs: list[Job], texts: list[str], parts: list[Parts], seconds: dict[str, float]) -> None:
        """Sets `metrics`: means over the batch. `distinct` is the mean share of distinct texts of a prompt."""
        size = self._config.rl.group_size
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        distinct = float(np.mean([len(set(group)) / len(group) for group in groups]))
        names = dict.fromkeys(name for part in parts for name in part)
        means = {f"reward.{name}": float(np.mean([part.get(name, 0.0) for part in parts])) for name in names}
        rewards = [sum(part.values()) for part in parts]
        self.metrics = {
            "reward": float(np.mean(rewards)),
            "success": float(np.mean(successes(np.array(rewards), self._config))),
            "distinct": distinct,
            "length": float(np.mean([len(job.drawn) for job in jobs])),
        }
        self.metrics |= means | seconds

    def _record(self, rows: list[int], texts: list[str], parts: list[Parts], advantages: np.ndarray) -> None:
        """Appends a line for each text to SAMPLES. If that fails, as on a full disk, it is noted, and no further texts
        are recorded."""
        lines = []
        for index, text, part, advantage in zip(rows, texts, parts, advantages.tolist(), strict=True):
            problem = {"problem": self._problems[index].id, "prompt": self._problems[index].prompt}
            lines.append({"batch": self._drawn, **problem, "text": text, "reward": part, "advantage": advantage})
        try:
            with open(self._samples, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            self._samples = Path(os.devnull)
            self._note(f"{SAMPLES} cannot be written: {error.strerror}; later texts are not recorded")

    def _forget_samples(self) -> None:
        """Removes the lines of batches that are drawn again from SAMPLES."""
        path = self._folder / SAMPLES
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _batch_of(line) < self._drawn]
            if len(kept) < len(lines):
                write_atomic(path, ["".join(kept).encode()])

    def _leave_out(self) -> None:
        """Removes the prompts with other characters than the tokenizer's, or without room for a text in the context.

        Raises:
            UserError: No prompt is left.
        """
        rl, block_size, total = self._config.rl, self._config.model.block_size, len(self._problems)
        found = [(problem, _ids(self._tokenizer, problem)) for problem in self._problems]
        known = [(problem, ids) for problem, ids in found if ids]
        kept = [(problem, ids) for problem, ids in known if len(ids) + rl.max_tokens <= block_size + 1]
        if not known:
            raise UserError("every prompt has characters that the training text lacks; give others with --prompts")
        if not kept:
            shortest = min(len(ids) for _, ids in known)
            raise UserError(
                f"--max-tokens {rl.max_tokens}: the shortest prompt has {shortest} tokens, the context {block_size}; "
                f"give at most {block_size + 1 - shortest}"
            )
        for count, reason in (
            (total - len(known), "they have characters that the training text lacks"),
            (len(known) - len(kept), f"with --max-tokens {rl.max_tokens}, they do not fit into {block_size} tokens"),
        ):
            if count:
                self._note(f"{count} of {total} prompts are left out: {reason}")
        self._problems, self._prompts = map(list, zip(*kept, strict=True))


def _ids(tokenizer, problem: Problem) -> list[int]:
    """The token ids of a prompt; none if it has unknown characters. A text without a prompt begins like a document."""
    try:
        return tokenizer.encode(problem.prompt).tolist() or [tokenizer.bos_id]
    except UserError:
        return []


def _batch_of(line: str) -> float:
    try:
        return parse_json(line, SAMPLES)["batch"]
    except (BadFile, KeyError, TypeError):
        return float("inf")


def _read_weights(path: Path, like: dict[str, mx.array]) -> dict[str, mx.array]:
    """Reads the weights of the reference. They must have the names and shapes of `like`."""
    if not path.is_file():
        raise BadFile(f"{path}: is missing; it holds the model before training, resume in the folder of the run")
    entries, _ = read_header(path)
    if {name: entry.shape for name, entry in entries.items()} != {name: w.shape for name, w in like.items()}:
        raise BadFile(f"{path}: does not hold the weights of this network")
    return {name: mx.array(w) for name, w in read_tensors(path, entries).items()}
