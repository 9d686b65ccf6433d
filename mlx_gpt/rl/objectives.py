"""Objectives of reinforcement learning: losses of texts that the model has written, and of their rewards.

A rollout is a text that was drawn from the model after a prompt. G rollouts of the same prompt are a group. The policy
is the model at the temperature of the draws. Every objective minimizes

    loss + kl_weight * KL - entropy_weight * H

where KL estimates the divergence from the reference, the model before the training, and H is the entropy of the policy.
The estimator of a token's divergence is exp(d) - d - 1 with d = log p_reference - log p (k3,
http://joschu.net/blog/kl-approx.html). It is never negative.

Shapes: B rollouts in a batch, T tokens of a prompt and its rollout, V vocabulary size.
"""

from typing import NamedTuple

import numpy as np

from mlx_gpt.config.schema import Config
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.train.objective import Scalars, cross_entropy, entropy

MAX_ADVANTAGE = 5.0  # advantages are limited to this absolute value


class Rollouts(NamedTuple):
    """A batch of rollouts.

    Attributes:
        inputs, targets: The tokens that the model reads, and the tokens that follow them, (B, T).
        mask: 1 for a target that was drawn, 0 for tokens of the prompt and padding, (B, T) float32.
        old: Log-probabilities of the targets when they were drawn, (B, T) float32.
        reference: Log-probabilities of the targets in the reference, (B, T) float32.
        advantages: (B,) float32.
    """

    inputs: mx.array
    targets: mx.array
    mask: mx.array
    old: mx.array
    reference: mx.array
    advantages: mx.array


class PerToken:
    """The part that objectives share whose loss is a mean over all drawn tokens.

    Raises:
        UserError: A group has fewer rollouts than the objective compares.
    """

    clip = 0.2  # the default of rl.clip
    needs_success = False  # whether a batch whose advantages are all 0 is skipped
    min_group = 2  # fewest rollouts of a group: the advantage of a single one would always be 0

    def __init__(self, config: Config):
        self.rl, self.entropy_weight = config.rl, config.train.entropy_weight
        self.clip = config.rl.clip or self.clip
        if config.rl.group_size < self.min_group:
            raise UserError(
                f"rl.group_size={config.rl.group_size}: {config.train.objective} compares the texts of a prompt with "
                f"each other; give --samples {self.min_group} or more"
            )

    def count(self, batch: Rollouts) -> mx.array:
        return batch.mask.sum()

    def sum(self, values: mx.array, batch: Rollouts) -> mx.array:
        """Sums values (B, T) of tokens so that the sum, divided by the count, is their mean."""
        return (values * batch.mask).sum()

    def losses(self, logp: mx.array, ratio: mx.array, batch: Rollouts) -> mx.array:
        """Returns the loss of each token, (B, T), from its log-probability and the ratio to the old probability."""
        raise NotImplementedError

    def ratio(self, logp: mx.array, batch: Rollouts) -> mx.array:
        """Returns the ratio of probabilities that is clipped: p / p_old of each token, (B, T)."""
        return mx.exp((logp - batch.old) * batch.mask)

    def clipped(self, ratio: mx.array, batch: Rollouts) -> mx.array:
        """Returns -min(ratio A, clip(ratio) A) for the advantages A."""
        advantages = batch.advantages[:, None]
        limited = mx.clip(ratio, 1 - self.clip, 1 + self.clip)
        return -mx.minimum(ratio * advantages, limited * advantages)

    def __call__(self, logits: mx.array, aux: Scalars, batch: Rollouts) -> tuple[mx.array, Scalars]:
        logits = logits.astype(mx.float32) / self.rl.temperature
        logp = -cross_entropy(logits, batch.targets)
        ratio = self.ratio(logp, batch)
        d = (batch.reference - logp) * batch.mask
        h = entropy(logits if self.entropy_weight else mx.stop_gradient(logits))
        kl, total = mx.exp(d) - d - 1, self.losses(logp, ratio, batch)
        if self.rl.kl_weight:
            total = total + self.rl.kl_weight * kl
        if self.entropy_weight:
            total = total - self.entropy_weight * h
        outside = (mx.abs(ratio - 1) > self.clip).astype(mx.float32)
        return self.sum(total, batch), {
            name: self.sum(values, batch) for name, values in (("kl", kl), ("H", h), ("clipped", outside))
        }

    @staticmethod
    def advantages(rewards: np.ndarray, config: Config) -> np.ndarray:
        """Returns the advantages of the rollouts in groups, from their rewards. Both are (number of groups, G)."""
        centred = rewards - rewards.mean(axis=1, keepdims=True)
        normalized = centred / np.maximum(rewards.std(axis=1, keepdims=True), 1e-6)
        return np.clip(normalized, -MAX_ADVANTAGE, MAX_ADVANTAGE)


class GRPO(PerToken):
    """Group-relative policy optimization (arXiv:2402.03300), as a mean over the tokens of all rollouts."""

    def losses(self, logp: mx.array, ratio: mx.array, batch: Rollouts) -> mx.array:
        return self.clipped(ratio, batch)


class DrGRPO(GRPO):
    """GRPO without the division by the standard deviation and by the lengths of the rollouts (arXiv:2503.20783)."""

    def count(self, batch: Rollouts) -> mx.array:
        return mx.array(float(len(batch.mask) * self.rl.max_tokens))

    @staticmethod
    def advantages(rewards: np.ndarray, config: Config) -> np.ndarray:
        return rewards - rewards.mean(axis=1, keepdims=True)


class PerText(PerToken):
    """The part that objectives share whose loss is a mean over the rollouts, and of each over its tokens."""

    def count(self, batch: Rollouts) -> mx.array:
        return mx.array(float(len(batch.mask)))

    def sum(self, values: mx.array, batch: Rollouts) -> mx.array:
        lengths = mx.maximum(batch.mask.sum(axis=1), 1)
        return ((values * batch.mask).sum(axis=1) / lengths).sum()


class GSPO(PerText):
    """Group sequence policy optimization (arXiv:2507.18071): the ratio is that of a whole text, per token."""

    clip = 3e-4

    def ratio(self, logp: mx.array, batch: Rollouts) -> mx.array:
        lengths = mx.maximum(batch.mask.sum(axis=1, keepdims=True), 1)
        ratio = mx.exp(((logp - batch.old) * batch.mask).sum(axis=1, keepdims=True) / lengths)
        return mx.broadcast_to(ratio, logp.shape)

    def losses(self, logp: mx.array, ratio: mx.array, batch: Rollouts) -> mx.array:
        return self.clipped(ratio, batch)


class MaxRL(PerText):
    """The mean log-likelihood of the successes, weighted by exp((reward - rl.success) / rl.tau).

    A rollout is a success if its reward is at least `rl.success`. A batch without a success has no gradient, so its
    source draws another one.
    """

    needs_success = True
    min_group = 1

    def losses(self, logp: mx.array, ratio: mx.array, batch: Rollouts) -> mx.array:
        return -batch.advantages[:, None] * logp

    @staticmethod
    def advantages(rewards: np.ndarray, config: Config) -> np.ndarray:
        """Returns weights whose mean is 1, and 0 for all rollouts that are no success."""
        weights = successes(rewards, config) * np.exp((rewards - rewards.max()) / config.rl.tau)
        return weights / max(weights.mean(), np.finfo(np.float64).tiny)


class RFT(MaxRL):
    """Rejection-sampling fine-tuning (arXiv:2308.01825): the mean log-likelihood of the successes."""

    @staticmethod
    def advantages(rewards: np.ndarray, config: Config) -> np.ndarray:
        success = successes(rewards, config)
        return success / max(success.mean(), np.finfo(np.float64).tiny)


def successes(rewards: np.ndarray, config: Config) -> np.ndarray:
    """Returns 1 for each reward that is a success, otherwise 0. The parts of a reward may be rounded when added."""
    return (rewards >= config.rl.success - 1e-9).astype(np.float64)
