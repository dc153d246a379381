"""Build an early-exit model from a pretrained encoder or a fine-tuned classifier.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .encoder_layers import family_of
from .exit_heads import ExitFeatures

logger = logging.get_logger(__name__)

# Arguments of `from_encoder_pretrained` that are not arguments of the method's config.
DOWNLOAD = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
LOADING = ("dtype", "attn_implementation", "num_hidden_layers")
# Arguments of the method's config that, if none is passed, are those of a fine-tuned classifier.
LABELS = ("num_labels", "id2label", "label2id", "problem_type")


def load_encoder(model_class: Any, name_or_path: str, options: dict[str, Any]) -> Any:
    """Build a model; see `EarlyExitForSequenceClassification.from_encoder_pretrained`.

    Args:
        model_class: class of the model.
        name_or_path: name on the Hub, or folder, of the encoder or classifier.
        options: all other arguments; those that are used here are removed.

    Returns:
        A model of `model_class`.

    Raises:
        ValueError: see there.
        TypeError: see there.
    """
    accepted = {*DOWNLOAD, *LOADING, *LABELS, *model_class.config_class.own_arguments()} - {"encoder_config"}
    accepted |= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    unknown = sorted(options.keys() - accepted)
    if unknown:
        config_name = model_class.config_class.__name__
        raise TypeError(
            f"from_encoder_pretrained got unknown arguments {unknown}; pass arguments of {config_name}, or "
            f"{', '.join([*DOWNLOAD, *LOADING])}"
        )
    download = {name: options.pop(name) for name in DOWNLOAD if name in options}
    loading = {name: options.pop(name) for name in LOADING if name in options}
    config = AutoConfig.from_pretrained(name_or_path, **download)
    if config.model_type == model_class.config_class.model_type or "encoder_config" in config.sub_configs:
        raise ValueError(
            f"name_or_path: '{name_or_path}' is already an early-exit model ('{config.model_type}'); call "
            "AutoModelForSequenceClassification.from_pretrained"
        )
    family = family_of(config)
    cut_layers(config, loading.pop("num_hidden_layers", None))
    fine_tuned = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    loader = AutoModelForSequenceClassification if fine_tuned else AutoModel
    source, report = loader.from_pretrained(
        name_or_path, config=config, output_loading_info=True, **download, **loading
    )
    encoder: PreTrainedModel = source.base_model
    base = f"{source.base_model_prefix}." if fine_tuned else ""
    missing = sorted(name for name in report["missing_keys"] if name.startswith(base) and "pooler" not in name)
    if missing:
        raise ValueError(
            f"name_or_path: '{name_or_path}' lacks weights of its encoder: {', '.join(missing[:5])}; pass a complete "
            "checkpoint"
        )

    if fine_tuned and not options.keys() & set(LABELS):
        options |= {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")}
    encoder_config = type(encoder.config).from_dict(encoder.config.to_dict())
    encoder_config._attn_implementation = encoder.config._attn_implementation
    for name in ("id2label", "label2id", "architectures", "problem_type"):  # they describe the source's head
        setattr(encoder_config, name, None)
    model = model_class(model_class.config_class(encoder_config=encoder_config, **options)).to(encoder.dtype)
    model.config.name_or_path = name_or_path  # for model cards; Transformers does not save it
    names = model.encoder.state_dict().keys()  # without the pooler
    model.encoder.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in names})

    heads = [module for module in model.modules() if isinstance(module, ExitFeatures)]
    paths = {part: path.format(base=source.base_model_prefix) for part, path in family.classifier.items()}
    if fine_tuned:
        dense = source.get_submodule(paths["dense"])
        rows = _label_rows(source.config, model.config)
        if not heads:
            method = model.config.model_type
            logger.warning(
                f"'{name_or_path}': its classifier is not used, since those of {method} are built differently"
            )
        elif rows is None or model.config.pooling != family.pooling(encoder_config):
            logger.warning(
                f"'{name_or_path}': its classifier is not used, since its labels or its pooling are not those of the "
                "new model"
            )
        else:
            if "norm" in paths:
                last_head = next((head for head in heads if model.classifiers[-1] in head.children()), heads[-1])
                _copy(source.get_submodule(paths["norm"]), last_head.norm)
            _copy(source.get_submodule(paths["classifier"]), model.classifiers[-1], rows)
            model.adopt_classifier()
    elif family.pooler is None or any("pooler" in name for name in report["missing_keys"]):
        return model
    else:
        dense = encoder.get_submodule(family.pooler)
    for head in heads:
        _copy(dense, head.dense)
    return model


def cut_layers(config: PreTrainedConfig, layers: int | None) -> None:
    """Change an encoder's config so that it has only the first layers.

    Args:
        config: the encoder's config, changed in place.
        layers: number of layers to keep; None keeps all.

    Raises:
        ValueError: the encoder does not have this number of layers, or is an ALBERT with several groups of layers.
    """
    if layers is None:
        return
    depth = config.num_hidden_layers
    if type(layers) is not int or not 1 <= layers <= depth:
        raise ValueError(
            f"num_hidden_layers: got {layers!r}; the encoder has layers 1 to {depth}, pass how many of the first "
            "layers to keep"
        )
    if layers < depth and getattr(config, "num_hidden_groups", 1) > 1:
        raise ValueError(
            f"num_hidden_layers: got {layers}; this ALBERT's {config.num_hidden_groups} groups of layers cannot be "
            "cut, since the number of layers decides which group each layer uses; leave it out"
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]


def _label_rows(source: PreTrainedConfig, target: PreTrainedConfig) -> list[int] | None:
    """Return for each label of the new model the row of the source's classifier; None if the labels differ."""
    if source.num_labels != target.num_labels:
        return None
    old_labels, new_labels = (
        [config.id2label[index] for index in range(config.num_labels)] for config in (source, target)
    )
    if sorted(old_labels) == sorted(new_labels):
        return [old_labels.index(name) for name in new_labels]
    # If one of them has only Transformers' default names, the labels are taken to be in the same order.
    default_names = [f"LABEL_{index}" for index in range(source.num_labels)]
    return list(range(source.num_labels)) if default_names in (old_labels, new_labels) else None


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module, rows: list[int] | None = None) -> None:
    """Copy the parameters of a layer; `rows` reorders its outputs."""
    for name, parameter in target.named_parameters():
        value = getattr(source, name, None)
        if value is None:
            parameter.zero_()  # the family's layer has no bias
        else:
            parameter.copy_(value if rows is None else value[rows])
