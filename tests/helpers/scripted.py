"""A model whose exits say what a test tells them to, so that what follows from it can be worked out by hand."""

from typing import Any

import torch
from helpers.tiny import build, encoder_config
from torch import Tensor

from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.exit_heads import Exit


def scripted(
    variant: str, answers: Tensor, encoder: str = "bert", **kwargs: Any
) -> EarlyExitForSequenceClassification:
    """Exit i says of text t the logits `answers[t, i]`, (texts, exits, labels); the encoder has as many layers.

    A method's own score is left out. Inputs come from `texts`.
    """
    layers = encoder_config(encoder, num_hidden_layers=answers.shape[1])
    model = build(variant, encoder_config=layers, num_labels=answers.shape[2], **kwargs)
    embed = model.embed

    def embed_with_script(inputs: dict[str, Tensor]) -> Any:
        hidden, context = embed(inputs)
        return hidden, context._replace(per_row={"script": answers[inputs["input_ids"][:, 0]]})

    def exit_step(index: int, pooled: Tensor, hidden: Tensor, context: Any, state: Any) -> Any:
        return Exit(context.per_row["script"][:, index]), state

    model.embed, model.exit_step = embed_with_script, exit_step
    return model


def texts(count: int) -> dict[str, Tensor]:
    """Texts whose first token is their number."""
    return {"input_ids": torch.stack([torch.arange(count), torch.arange(count) + 5], dim=1)}


def naming(classes: list[list[int]], labels: int = 3) -> Tensor:
    """Logits of the classes that the exits name: (texts, exits) -> (texts, exits, labels)."""
    return torch.nn.functional.one_hot(torch.tensor(classes), labels).float()
