"""Remove the layers that no sample of a validation set reaches, as DACT-BERT, section 4.3, proposes."""

import copy
from typing import Any

from transformers import PreTrainedModel

from ..evaluation.trace import ExitTrace
from ..models.configuration_early_exit import Threshold
from ..models.modeling_early_exit import EarlyExitForSequenceClassification, cut_layers


def prune_unused_layers(
    model: EarlyExitForSequenceClassification, trace: ExitTrace, exit_threshold: Threshold = None
) -> EarlyExitForSequenceClassification:
    """Return a smaller model without the layers above the deepest exit that a sample of the trace takes.

    The new model gives every sample of the trace the same prediction after the same layer, at the same threshold,
    which is stored in its config. Logits differ by rounding only, because the new last layer computes just the tokens
    that its exit reads.

    This does not hold beyond the trace, so use a validation set that is large and similar to future texts:

    * Other texts may have used deeper layers. They now leave at the last remaining exit, ready or not.
    * Other thresholds, including full depth, now use at most the remaining layers. Collect a new trace: scores of the
      original model do not apply to the new one.
    * The readiness score of the last exit, which decides nothing, may differ from that of the same exit in the
      original model (BERxiT's `lte_variant`).
    * ALBERT's layers share one set of weights. Pruning removes exits and limits the depth, but no layer weights.

    The method is proposed in DACT-BERT, section 4.3.

    Args:
        model: Model to prune; it is not changed. The new model has its class, device, dtype, and train or eval mode.
        trace: Trace of this model, with its present temperatures, on validation data. Labels are not needed.
        exit_threshold: Threshold at which the model will be used: one number, or one per exit. Default: that of the
            config.

    Returns:
        The smaller model.

    Raises:
        ValueError: If there is no threshold, if the trace is of another model, if a sample reaches the last layer, if
            tokens skip layers in this method, if ALBERT's layers share the weights of several groups, or if an adapter
            has renamed the weights.
        TypeError: If the model is wrapped, as by PEFT.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.evaluation.collect import collect_trace
        >>> from adaexit_hf.models.modeling_deebert import DeeBertConfig, DeeBertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=3, num_attention_heads=1)
        >>> config = DeeBertConfig(encoder_config=encoder, exit_criterion="confidence", exit_threshold=0.5)
        >>> model = DeeBertForSequenceClassification(config)  # of two classes, one always has a confidence above 0.5
        >>> trace = collect_trace(model, [{"input_ids": [2, 5, 3]}], progress=False)
        >>> prune_unused_layers(model, trace).config.exit_layers
        [1]
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: got a {type(model).__name__}; pass the model in it, e.g. model.merge_and_unload()")
    config = copy.deepcopy(model.config)
    _check(config, trace)
    if model.spares_tokens:
        raise ValueError(
            f"model: in '{config.model_type}' each token has a depth that refers to the layers of this encoder, so no "
            "layer can be removed; train a model with fewer layers, from_encoder_pretrained(name, "
            f"num_hidden_layers=<below {trace.depth}>)"
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
    weights, smaller_weights = model.state_dict(), smaller.state_dict()
    missing = sorted(smaller_weights.keys() - weights.keys())
    if missing:
        raise ValueError(
            f"model: has no weights {', '.join(missing[:3])}; merge adapters first, e.g. model.merge_and_unload()"
        )
    # `assign` keeps the dtype of each weight.
    smaller.load_state_dict({name: weights[name].clone() for name in smaller_weights}, assign=True)
    return smaller.to(model.device).train(model.training)


def _check(config: Any, trace: ExitTrace) -> None:
    """Check that the trace is of this model.

    Raises:
        ValueError: If exit layers, method, criterion or number of labels differ.
    """
    of_model = {
        "exit_layers": tuple(config.exit_layers),
        "method": config.model_type,
        "criterion": config.exit_criterion,
        "number of labels": config.num_labels,
    }
    of_trace = {
        "exit_layers": trace.exit_layers,
        "method": trace.method or config.model_type,
        "criterion": trace.criterion or config.exit_criterion,
        "number of labels": trace.logits.shape[2],
    }
    for name, value in of_trace.items():
        if value != of_model[name]:
            raise ValueError(
                f"trace: its {name} is {value}, that of the model is {of_model[name]}; call collect_trace(model, "
                "dataset) with this model"
            )


def _cut(config: Any, exits: int, threshold: Threshold) -> None:
    """Change a config so that it describes the first exits only, and the layers up to the last of them."""
    encoder, layers = config.encoder_config, config.exit_layers[exits - 1]
    groups = getattr(encoder, "num_hidden_groups", 1)
    if groups > 1:
        raise ValueError(
            f"model: its ALBERT layers share the weights of {groups} groups, and the number of layers determines "
            "which layer uses which group, so no layer can be removed; keep the model"
        )
    unchanged = config.kept_when_cut()
    cut_layers(encoder, layers)
    for name, value in unchanged.items():
        setattr(config, name, value)
    config.exit_layers = config.exit_layers[:exits]
    config.last_exit_head = None  # the exit that becomes the last one has a head like the others
    if config.exit_temperatures is not None:
        config.exit_temperatures = list(config.exit_temperatures[:exits])
    config.exit_threshold = list(threshold[:exits]) if isinstance(threshold, list | tuple) else threshold
    config.check()
