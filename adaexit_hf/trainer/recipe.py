"""The recommended recipe: what to train if no paper is to be reproduced."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers.utils import cached_file

from ..models import METHODS
from ..models.configuration_early_exit import check_whole_number
from ..utils.spelling import did_you_mean


class Recipe(NamedTuple):
    """A method with the settings to train it with.

    Attributes:
        method: Name of the method, a key of `METHODS`.
        config: Arguments of the method's config.
        training: Arguments of `EarlyExitTrainingArguments`.
    """

    method: str
    config: dict[str, Any]
    training: dict[str, Any]


def sentence_pooling(model_name_or_path: str) -> Literal["first", "mean"] | None:
    """Return how a sentence encoder makes one vector of a text, as its sentence-transformers files say.

    Args:
        model_name_or_path: Hub name or folder of an encoder.

    Returns:
        "first" or "mean"; None for another way, or for an encoder without such files.
    """
    file = cached_file(
        model_name_or_path,
        "1_Pooling/config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    settings = json.loads(Path(file).read_text(encoding="utf-8"))
    ways = [name for name, used in settings.items() if name.startswith("pooling_mode_") and used is True]
    known: dict[str, Literal["first", "mean"]] = {
        "pooling_mode_cls_token": "first",
        "pooling_mode_mean_tokens": "mean",
    }
    return known.get(ways[0]) if len(ways) == 1 else None


def recommended_recipe(
    num_labels: int,
    pairs: bool,
    method: str | None = None,
    pooling: Literal["first", "mean"] | None = None,
    keeps_classifier: bool = False,
    num_layers: int | None = None,
) -> Recipe:
    """Return the recommended settings for this kind of data.

    They are parts of several papers, and in none of them together: one stage with the sum of all exits' losses
    (BERxiT's joint fine-tuning, Eq. 3, as in The Right Tool for the Job); heads that read more than one sentence
    vector, `AttentionPool` for single texts and `SegmentPair` for pairs; the mean over the tokens as sentence vector,
    unless the encoder was trained with another one; and a learning rate for the exits that suits new layers, not a
    pretrained encoder. For regression, where one layer for all texts is hard to beat, the criterion is "layer", and
    up to four exits share the encoder instead of one per layer.

    Args:
        num_labels: Number of labels; 1 for regression.
        pairs: Whether the inputs are pairs of texts.
        method: A method to be trained as in its paper, but with these heads and rates. Default: None, BERxiT with
            joint fine-tuning.
        pooling: How the encoder was trained to make one vector of a text, from `sentence_pooling`. Default: None, not
            known. For pairs it is "mean" in any case, since `SegmentPair` compares the means of the two texts.
        keeps_classifier: Whether to add exits to a fine-tuned classifier that stays as it is: its head is the last
            exit, and BERxiT is trained in two stages, of which only the second one, "exits", is to be run. Default:
            False.
        num_layers: Number of layers of the encoder, which a regression needs if there is no `method` and no
            `keeps_classifier`: it has exits after a third, half, two thirds and all of them. Default: None.

    Returns:
        The recipe.

    Raises:
        ValueError: If the method is unknown, if `num_labels` or `num_layers` is no whole number from 1, or if
            `num_layers` is missing.
        TypeError: If `pairs` is not True or False.

    Examples:
        >>> recipe = recommended_recipe(num_labels=2, pairs=True)
        >>> recipe.method, recipe.config["exit_head"], recipe.training
        ('berxit', 'pair', {'exits_learning_rate': 0.001})
        >>> recommended_recipe(num_labels=6, pairs=False, method="deebert").config
        {'exit_head': 'attention-pool', 'exit_pooling': 'mean'}
        >>> recommended_recipe(num_labels=2, pairs=True, keeps_classifier=True).config["last_exit_head"]
        'dense'
        >>> recommended_recipe(num_labels=1, pairs=True, num_layers=12).config["exit_layers"]
        [4, 6, 8, 12]
    """
    check_whole_number("num_labels", num_labels, low=1, advice="1 for regression")
    if num_layers is not None:
        check_whole_number("num_layers", num_layers, low=1)
    if not isinstance(pairs, bool):
        raise TypeError(f"pairs: got {pairs!r}; pass True for pairs of texts, False for single texts")
    if method is not None and method not in METHODS:
        raise ValueError(f"method: got '{method}'; choose one of {', '.join(METHODS)}{did_you_mean(method, METHODS)}")
    config: dict[str, Any] = {"exit_head": "pair" if pairs else "attention-pool"}
    config["exit_pooling"] = "mean" if pairs else pooling or "mean"
    if num_labels == 1:
        config["exit_criterion"] = "layer"
    if keeps_classifier:
        config |= settings_that_keep_a_classifier(method or "berxit")
    elif method is None:
        config["fine_tuning"] = "joint"
        if num_labels == 1:
            if num_layers is None:
                raise ValueError(
                    "num_layers: missing; a regression has exits after some layers only: pass "
                    "AutoConfig.from_pretrained(encoder).num_hidden_layers"
                )
            config["exit_layers"] = sorted({-(-num_layers * sixths // 6) for sixths in (2, 3, 4, 6)})  # rounded up
    return Recipe(method or "berxit", config, {"exits_learning_rate": 1e-3})


def settings_that_keep_a_classifier(method: str) -> dict[str, Any]:
    """Return the settings with which a method has a stage that trains exits before a fine-tuned classifier.

    Args:
        method: Name of the method.

    Raises:
        ValueError: The method trains the encoder with its exits.
    """
    keeping = [name for name, model in METHODS.items() if model.config_class.has_separate_heads]
    if method not in keeping:
        raise ValueError(
            f"method: got '{method}', which cannot leave a fine-tuned classifier as it is; pass one of "
            f"{', '.join(keeping)}, or leave it out"
        )
    return {"last_exit_head": "dense"} | ({"fine_tuning": "two_stage"} if method == "berxit" else {})
