"""Eval mode for a while.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, afterwards for every module its own mode again: users keep parts of a model in eval mode.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with eval_mode(model):
    ...     inside = [part.training for part in model]
    >>> inside, [part.training for part in model]
    ([False, False], [True, False])
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
