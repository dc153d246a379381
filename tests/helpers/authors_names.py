"""Our parameters under the names that the code of the papers' authors gives them."""

import torch
from torch import Tensor

from adaexit_hf.models import EarlyExitForSequenceClassification

POOLERS = {"distilbert": "pre_classifier", "albert": "albert.pooler"}  # the others' is `<base>.pooler.dense`


def authors_names(model: EarlyExitForSequenceClassification, family: str) -> dict[str, Tensor]:
    """Our model's parameters as their code would have saved them, with its aliases and its last off-ramp."""
    layers = f"{family}.transformer" if family == "distilbert" else f"{family}.encoder"
    dense = "pre_classifier" if family == "distilbert" else "pooler.dense"
    pooler, last, saved = POOLERS.get(family, f"{family}.pooler.dense"), len(model.exits) - 1, {}
    for name, value in model.state_dict().items():
        owner, _, rest = name.partition(".")
        if owner == "encoder":
            saved |= {f"{family}.{rest}": value, f"core.{rest}": value}
        elif owner == "lte":
            saved[f"{layers}.lte_classifier.{rest}"] = -value
        else:
            number, part, kind = rest.split(".")
            place = f"{layers}.highway.{number}.{dense if part == 'dense' else part}.{kind}"
            saved[place] = torch.full_like(value, 7.0) if int(number) == last else value
            if int(number) == last:
                saved[f"{pooler}.{kind}" if part == "dense" else f"classifier.{kind}"] = value
    return saved


def pabees_names(model: EarlyExitForSequenceClassification, family: str) -> dict[str, Tensor]:
    """The same of PABEE's: one stock pooler, and a list of classifiers."""
    theirs = {"encoder": family, "pooler.dense": POOLERS.get(family, f"{family}.pooler.dense"), "exits": "classifiers"}
    saved = {}
    for name, value in model.state_dict().items():
        ours = next(prefix for prefix in theirs if name.startswith(prefix))
        saved[theirs[ours] + name.removeprefix(ours)] = value
    return saved
