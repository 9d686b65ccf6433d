"""Makes trainers that learn from rewards, with a small network and a small alphabet."""

import numpy as np
from training import V, validation

from mlx_gpt.checkpoint.store import Header
from mlx_gpt.code.problems import Problem
from mlx_gpt.config.schema import Config
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.rl.rollout import RolloutSource
from mlx_gpt.run.request import RL_DEFAULTS
from mlx_gpt.train.objectives import ROLLOUT_OBJECTIVES, make_objective
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.statistics import Statistics
from mlx_gpt.train.trainer import Trainer

TOKENIZER = CharTokenizer("abcdefghijk"[: V - 2])
PROMPTS = ("a", "bc", "def")
SMALL = {"model.n_embd": 24, "model.n_head": 2, "model.n_layer": 1, "model.block_size": 24}
SMALL |= {"train.batch_size": 8, "train.iters": 20, "optimizer.learning_rate": 0.02, "optimizer.warmup_steps": 1}
SMALL |= {"rl.max_tokens": 6, "rl.prompts_per_batch": 2, "rl.group_size": 8, "rl.kl_weight": 0.0}


def config_of(objective, seed=1, **settings):
    """The settings of a run. `rl__success` stands for `rl.success`."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return Config().replace(RL_DEFAULTS | SMALL | {"train.objective": objective, "train.seed": seed} | given)


def share_of(letter):
    """A reward: the share of a letter among six letters."""
    return lambda problems, texts: [{"letters": text.count(letter) / 6} for text in texts]


def source_of(config, folder, reward, reference=None, prompts=PROMPTS):
    objective = ROLLOUT_OBJECTIVES[config.train.objective]
    return RolloutSource(
        config=config,
        tokenizer=TOKENIZER,
        problems=[Problem(id=f"{i}", language="python", prompt=p, entry_point="") for i, p in enumerate(prompts)],
        reward=reward,
        advantages=objective.advantages,
        needs_success=objective.needs_success,
        reference=reference,
        num_tokens=100,
        folder=folder,
    )


def learner(config, folder, reward, checkpoint=None):
    """A trainer of a new run, or of one that continues from a checkpoint in the folder."""
    header = checkpoint.header if checkpoint else Header(config=config, vocab_size=V, step=0, num_updates=0)
    model = GPT(config.model, V, config.train.seed)
    if checkpoint:
        model.set_weights({k: mx.array(w) for k, w in checkpoint.weights.items()})
    return Trainer(
        header=header,
        model=model,
        optimizer=Optimizer(config.optimizer, roles_of(config.model, V)),
        optimizer_state=checkpoint.optimizer if checkpoint else None,
        objective=make_objective(config),
        source=source_of(config, folder, reward, None if checkpoint else model.weights()),
        validation=validation(model, config),
        statistics=Statistics(config.model),
        group=Alone(),
        folder=folder,
    )


def metric(reports, name):
    """The values of a metric at each step."""
    return np.array([report.metrics[name] for report in reports if hasattr(report, "grad_norm")])
