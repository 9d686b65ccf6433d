"""Patience: how the loss of an evaluation changes the progress of a run."""

import dataclasses

from mlx_gpt.checkpoint.store import Header


def after_evaluation(header: Header, loss: float) -> Header:
    """Returns the progress of a run after an evaluation with this validation loss.

    The header counts the evaluations without a new lowest loss. When they reach `train.patience`, the peak learning
    rate is cut and the count starts again, at most `optimizer.max_lr_cuts` times.
    """
    if loss < header.best_loss:
        return dataclasses.replace(header, best_loss=loss, best_step=header.step, bad_evals=0, last_eval=header.step)
    header = dataclasses.replace(header, bad_evals=header.bad_evals + 1, last_eval=header.step)
    patience, max_lr_cuts = header.config.train.patience, header.config.optimizer.max_lr_cuts
    if patience and header.bad_evals >= patience and header.num_lr_cuts < max_lr_cuts:
        return dataclasses.replace(header, num_lr_cuts=header.num_lr_cuts + 1, bad_evals=0)
    return header
