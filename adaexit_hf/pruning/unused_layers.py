"""Take away the layers that no sample of a validation set reaches. DACT-BERT, section 4.3, where it is proposed."""

import copy
from typing import Any

from transformers import PreTrainedModel

from ..evaluation.trace import ExitTrace
from ..models.configuration_early_exit import Threshold
from ..models.from_encoder import cut_layers
from ..models.modeling_early_exit import EarlyExitForSequenceClassification


def prune_unused_layers(
    model: EarlyExitForSequenceClassification, trace: ExitTrace, exit_threshold: Threshold = None
) -> EarlyExitForSequenceClassification:
    """A smaller model of the same class, without the layers above the deepest exit that a sample of the trace takes.

    Guaranteed: for every sample of the trace the same answer after the same layer, at the same threshold, which the
    new model has in its config. Logits differ by rounding only, since the last layer runs for those tokens alone
    that its exit reads.

    Not guaranteed, so take a validation set that is large, and like what will come:

    * Other texts may have gone deeper. They are now answered by the last exit that is left, ready or not.
    * Other thresholds, full depth included, go no deeper either: the scores shown for the whole model are not those of
      this one. Collect a new trace.
    * The score of the last exit, which decides nothing, is not always what it was there (BERxiT's `lte_variant`).
    * ALBERT's layers are one and the same: cut off are exits, and how deep a text may go; the weights stay.

    Args:
        model: stays as it is. The new one is on its device, in its dtype, and in its train or eval mode.
        trace: of this model, at its present temperatures, on validation data; labels are not needed.
        exit_threshold: as in `forward`. Default: the config's.

    Raises:
        ValueError: no threshold; a trace of another model; a sample that reaches the last layer; tokens that skip
            layers, ALBERT with several groups of layers, weights that an adapter has renamed.
        TypeError: the model is wrapped.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: got a {type(model).__name__}; pass the model in it, e.g. model.merge_and_unload()")
    config = copy.deepcopy(model.config)
    _check(config, trace)
    if model.spares_tokens:
        raise ValueError(
            f"model: in '{config.model_type}' the depths of tokens are numbers of this encoder's layers, which cannot "
            f"be cut; train a model with fewer, from_encoder_pretrained(name, num_hidden_layers=<below {trace.depth}>)"
        )
    threshold = config.exit_threshold if exit_threshold is None else exit_threshold
    values = config.own_thresholds() if exit_threshold is None else config.thresholds(exit_threshold)
    if values is None:
        raise ValueError(
            f"exit_threshold: got {threshold}, full depth, which uses every layer; pass the threshold that the model "
            "will be used with"
        )
    chosen = trace.exits_at(values)
    exits = int(chosen.max()) + 1
    if exits == len(trace.exit_layers):
        count = int((chosen == exits - 1).sum())
        raise ValueError(
            f"trace: {count} of {len(chosen)} samples run to the last layer, {trace.depth}, at exit_threshold="
            f"{threshold}, so no layer is unused; pass a threshold at which all leave earlier, or keep the model"
        )
    _cut(config, exits, threshold)
    smaller: Any = type(model)(config)
    weights, wanted = model.state_dict(), smaller.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    if missing:
        raise ValueError(
            f"model: has no weights {', '.join(missing[:3])}; merge adapters first, e.g. model.merge_and_unload()"
        )
    smaller.load_state_dict({name: weights[name].clone() for name in wanted}, assign=True)  # in their own dtypes
    return smaller.to(model.device).train(model.training)


def _check(config: Any, trace: ExitTrace) -> None:
    """Is the trace one of this model?"""
    own = {
        "exit_layers": tuple(config.exit_layers),
        "method": config.model_type,
        "criterion": config.exit_criterion,
        "labels": config.num_labels,
    }
    found = {
        "exit_layers": trace.exit_layers,
        "method": trace.method or config.model_type,
        "criterion": trace.criterion or config.exit_criterion,
        "labels": trace.logits.shape[2],
    }
    for name, value in found.items():
        if value != own[name]:
            raise ValueError(
                f"trace: its {name} is {value}, the model's {own[name]}; call collect_trace(model, dataset) with this "
                "model"
            )


def _cut(config: Any, exits: int, threshold: Threshold) -> None:
    """Let a config have the first exits only, and the layers up to the last of them."""
    encoder, layers = config.encoder_config, config.exit_layers[exits - 1]
    groups = getattr(encoder, "num_hidden_groups", 1)
    if groups > 1:
        raise ValueError(
            f"model: its ALBERT's layers share the weights of {groups} groups, and their number decides which group "
            "runs where, so it cannot be cut; keep the model"
        )
    kept = config.kept_when_cut()
    cut_layers(encoder, layers)
    for name, value in kept.items():
        setattr(config, name, value)
    config.exit_layers = config.exit_layers[:exits]
    if config.exit_temperatures is not None:
        config.exit_temperatures = list(config.exit_temperatures[:exits])
    config.exit_threshold = list(threshold[:exits]) if isinstance(threshold, list | tuple) else threshold
    config.check()
