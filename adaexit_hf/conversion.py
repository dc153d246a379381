"""Checkpoints of the papers' authors: their parameters under our names, by rule.

castorini/DeeBERT and castorini/berxit are forks of Transformers 2.1. In their files the off-ramp after layer i + 1 is
`<base>.encoder.highway.<i>`, and the answer of full depth is the stock classifier's. In PABEE's, which Transformers 3
and 4 carried as an example, the classifier after layer i + 1 is `classifiers.<i>`, and all read the stock pooler. What
differs from the papers:

* the classifier of the last off-ramp is never trained, so it is left out: as in the papers, the last exit is the stock
  classifier;
* learning to exit predicts uncertainty there and certainty here, so its weights change sign: an exit at an uncertainty
  below T is one at a certainty above 1 - T here;
* BERxiT's files store the tensors of the encoder a second time under the name `core.`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedConfig

from .models.configuration_early_exit import EarlyExitConfig

_PART = r"(?P<part>weight|bias)"
_LAYERS = r"(?:(?:bert|roberta|albert)\.encoder|distilbert\.transformer)"
_RAMP = rf"{_LAYERS}\.highway\.(?P<layer>\d+)"
# The authors' name -> ours; None leaves the tensor out. {exit} is `exits.<number>` of the exit at this layer, or of
# the last one where the name has no layer; {ramp} the same, but the last off-ramp is no exit; {pooler} the shared one,
# or else the last exit's.
RULES: tuple[tuple[str, str | None], ...] = (
    (r"core\..+|distilbert\.encoder\..+|\w+\.embeddings\.position_ids", None),
    (rf"{_RAMP}\.(?:pooler\.dense|pre_classifier)\.{_PART}", "{ramp}.dense.{part}"),
    (rf"{_RAMP}\.classifier\.{_PART}", "{ramp}.classifier.{part}"),
    (rf"classifiers\.(?P<layer>\d+)\.{_PART}", "{exit}.{part}"),
    (rf"{_LAYERS}\.lte_classifier\.{_PART}", "lte.{part}"),
    (rf"(?:(?:bert|roberta)\.pooler\.dense|albert\.pooler|pre_classifier)\.{_PART}", "{pooler}.dense.{part}"),
    (rf"classifier\.{_PART}", "{exit}.classifier.{part}"),
    (r"(?:bert|roberta|albert|distilbert)\.(?P<rest>(?:embeddings|encoder|transformer)\..+)", "encoder.{rest}"),
)


def convert_encoder_config(values: Mapping[str, Any], family: str) -> PreTrainedConfig:
    """The encoder's config from the authors' `config.json`, without the entries that Transformers has dropped since.

    >>> convert_encoder_config({"num_hidden_layers": 4, "use_bfloat16": False}, "bert").num_hidden_layers
    4
    """
    config_class = CONFIG_MAPPING[family]
    shared = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(config_class)} - shared
    return config_class(**{name: value for name, value in values.items() if name in own})


def convert_name(name: str, exit_layers: list[int], shared_pooler: bool = False) -> str | None:
    """Our name of the authors' parameter, or None for one that is left out.

    Args:
        name: theirs.
        exit_layers: of our config.
        shared_pooler: whether our model has one pooler for all exits, as PABEE has.

    Raises:
        ValueError: no rule fits the name.

    >>> layers = [1, 2, 3]
    >>> convert_name("bert.encoder.highway.1.pooler.dense.bias", layers), convert_name("classifier.weight", layers)
    ('exits.1.dense.bias', 'exits.2.classifier.weight')
    >>> convert_name("bert.pooler.dense.bias", layers), convert_name("bert.pooler.dense.bias", layers, True)
    ('exits.2.dense.bias', 'pooler.dense.bias')
    """
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    matches = ((re.fullmatch(rule, name), ours) for rule, ours in RULES)
    match, ours = next((pair for pair in matches if pair[0]), (None, None))
    found = match.groupdict() if match else {}
    depth = exit_layers[-1]
    layer = int(found["layer"]) + 1 if "layer" in found else depth
    if match is None or layer > depth:
        raise ValueError(f"name: no rule for '{name}' and {depth} layers; see adaexit_hf.conversion.RULES")
    if ours is None or layer not in exit_layers:
        return None
    exit = f"exits.{exit_layers.index(layer)}"
    # The last off-ramp is no exit: only learning to exit reads, and trains, its dense layer.
    ramp = "lte_last" if layer == depth else exit
    return ours.format(exit=exit, ramp=ramp, pooler="pooler" if shared_pooler else exit, **found)


def convert_state_dict(tensors: Mapping[str, Tensor], config: EarlyExitConfig) -> dict[str, Tensor]:
    """All parameters of the model with this config, from the authors' state dict.

    Left out are classifiers after layers that are not among `config.exit_layers`, and what belongs to learning to exit
    where the model does not exit by it.

    Raises:
        ValueError: the state dict has parameters that no rule knows or the model has not, or lacks some.
    """
    with torch.device("meta"):
        wanted = AutoModelForSequenceClassification.from_config(config).state_dict().keys()
    shared_pooler = "pooler.dense.weight" in wanted
    converted: dict[str, Tensor] = {}
    unknown = []
    for theirs, value in tensors.items():
        try:
            ours = convert_name(theirs, config.exit_layers, shared_pooler)
        except ValueError:
            unknown.append(theirs)
            continue
        if ours is None or (ours.startswith("lte") and ours not in wanted):
            continue
        if ours not in wanted:
            unknown.append(theirs)
        converted[ours] = -value if ours.startswith("lte.") else value
    if unknown:
        raise ValueError(f"tensors: '{config.model_type}' has no place for {', '.join(sorted(unknown))}")
    missing = sorted(wanted - converted.keys())
    if missing:
        raise ValueError(f"tensors: '{config.model_type}' needs {', '.join(missing)} too; pass the whole state dict")
    return converted
