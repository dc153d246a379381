"""Start an early-exit model from a pretrained encoder or a fine-tuned classifier.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from .encoder_layers import family_of
from .exit_heads import ExitFeatures
from .exit_heads import ExitHead

DOWNLOAD = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
LABELS = ("num_labels", "id2label", "label2id", "problem_type")


def load_encoder(model_class: Any, name_or_path: str, options: dict[str, Any]) -> Any:
    """See `EarlyExitForSequenceClassification.from_encoder_pretrained`."""
    download = {name: options.pop(name) for name in DOWNLOAD if name in options}
    loading = {name: options.pop(name) for name in ("dtype", "attn_implementation") if name in options}
    config = AutoConfig.from_pretrained(name_or_path, **download)
    if config.model_type == model_class.config_class.model_type or "encoder_config" in config.sub_configs:
        raise ValueError(
            f"name_or_path: '{name_or_path}' is an early-exit model already ('{config.model_type}'); call "
            "AutoModelForSequenceClassification.from_pretrained"
        )
    family = family_of(config)
    fine_tuned = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    loader = AutoModelForSequenceClassification if fine_tuned else AutoModel
    source, report = loader.from_pretrained(name_or_path, output_loading_info=True, **download, **loading)
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
    wanted = model.encoder.state_dict()
    model.encoder.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in wanted})

    heads = [module for module in model.modules() if isinstance(module, ExitHead)]
    paths = {part: path.format(base=source.base_model_prefix) for part, path in family.classifier.items()}
    if fine_tuned:
        dense = source.get_submodule(paths["dense"])
        for part in ("norm", "classifier"):
            if part in paths and (part != "classifier" or source.config.num_labels == model.config.num_labels):
                _copy(source.get_submodule(paths[part]), getattr(heads[-1], part))
    elif family.pooler is None or any("pooler" in name for name in report["missing_keys"]):
        return model
    else:
        dense = encoder.get_submodule(family.pooler)
    for module in model.modules():
        if isinstance(module, ExitFeatures):
            _copy(dense, module.dense)
    return model


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    for name, parameter in target.named_parameters():
        value = getattr(source, name, None)
        parameter.zero_() if value is None else parameter.copy_(value)  # the family's layer may have no bias
