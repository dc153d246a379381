"""Start an early-exit model from a pretrained encoder or a fine-tuned classifier.

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

DOWNLOAD = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
LOADING = ("dtype", "attn_implementation", "num_hidden_layers")
LABELS = ("num_labels", "id2label", "label2id", "problem_type")


def load_encoder(model_class: Any, name_or_path: str, options: dict[str, Any]) -> Any:
    """See `EarlyExitForSequenceClassification.from_encoder_pretrained`."""
    known = {*DOWNLOAD, *LOADING, *LABELS, *model_class.config_class.own_arguments()} - {"encoder_config"}
    known |= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    unknown = sorted(options.keys() - known)
    if unknown:
        config_name = model_class.config_class.__name__
        raise TypeError(
            f"from_encoder_pretrained got unknown arguments {unknown}; it takes those of {config_name}, and "
            f"{', '.join([*DOWNLOAD, *LOADING])}"
        )
    download = {name: options.pop(name) for name in DOWNLOAD if name in options}
    loading = {name: options.pop(name) for name in LOADING if name in options}
    config = AutoConfig.from_pretrained(name_or_path, **download)
    if config.model_type == model_class.config_class.model_type or "encoder_config" in config.sub_configs:
        raise ValueError(
            f"name_or_path: '{name_or_path}' is an early-exit model already ('{config.model_type}'); call "
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
    lost = [name for name in report["missing_keys"] if name.startswith(base) and "pooler" not in name]
    if lost:
        raise ValueError(f"name_or_path: '{name_or_path}' lacks weights of its encoder: {', '.join(sorted(lost)[:5])}")

    if fine_tuned and not options.keys() & set(LABELS):
        options |= {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")}
    clean = type(encoder.config).from_dict(encoder.config.to_dict())
    clean._attn_implementation = encoder.config._attn_implementation
    for name in ("id2label", "label2id", "architectures", "problem_type"):  # of the head that stays behind
        setattr(clean, name, None)
    model = model_class(model_class.config_class(encoder_config=clean, **options)).to(encoder.dtype)
    model.config.name_or_path = name_or_path  # for cards; Transformers does not save it
    wanted = model.encoder.state_dict()
    model.encoder.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in wanted})

    heads = [module for module in model.modules() if isinstance(module, ExitFeatures)]
    paths = {part: path.format(base=source.base_model_prefix) for part, path in family.classifier.items()}
    if fine_tuned:
        dense = source.get_submodule(paths["dense"])
        rows = _label_rows(source.config, model.config)
        if not heads:
            method = model.config.model_type
            logger.warning(f"'{name_or_path}': its classifier is left behind; {method}'s are built differently")
        elif rows is None or model.config.pooling != family.pooling(clean):
            logger.warning(
                f"'{name_or_path}': its classifier is left behind; its labels or its pooling are not those asked for"
            )
        else:
            if "norm" in paths:
                owner = next((head for head in heads if model.classifiers[-1] in head.children()), heads[-1])
                _copy(source.get_submodule(paths["norm"]), owner.norm)
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
    """Let an encoder's config keep the first layers only; None keeps all.

    Raises:
        ValueError: a number of layers that it does not have, or an ALBERT of several groups of layers.
    """
    if layers is None:
        return
    depth = config.num_hidden_layers
    if type(layers) is not int or not 1 <= layers <= depth:
        raise ValueError(
            f"num_hidden_layers: got {layers!r}; the encoder has layers 1 to {depth}, pass how many of them to keep"
        )
    if layers < depth and getattr(config, "num_hidden_groups", 1) > 1:
        raise ValueError(
            f"num_hidden_layers: got {layers}; this ALBERT's {config.num_hidden_groups} groups of layers cannot be "
            "cut, since what each layer is depends on their number; leave it out"
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]


def _label_rows(source: PreTrainedConfig, target: PreTrainedConfig) -> list[int] | None:
    """For each of our labels the row of the source's classifier; None where they are not the same labels."""
    if source.num_labels != target.num_labels:
        return None
    theirs, ours = ([config.id2label[index] for index in range(config.num_labels)] for config in (source, target))
    if sorted(theirs) == sorted(ours):
        return [theirs.index(name) for name in ours]
    # Made-up names say nothing about the order.
    unnamed = [f"LABEL_{index}" for index in range(source.num_labels)]
    return list(range(source.num_labels)) if unnamed in (theirs, ours) else None


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module, rows: list[int] | None = None) -> None:
    for name, parameter in target.named_parameters():
        value = getattr(source, name, None)
        if value is None:
            parameter.zero_()  # the family's layer has no bias
        else:
            parameter.copy_(value if rows is None else value[rows])
