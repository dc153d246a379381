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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)

from ..models import METHODS
from ..models.configuration_early_exit import EarlyExitConfig
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from .checkpoint_files import TOKENIZER_FILES, folder_of, read_config, read_tensors

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
FAMILIES = ("bert", "roberta", "albert", "distilbert")
_ENTAILS = ("entailment", "not_entailment")
# Classes in the order of the authors' code, by the `finetuning_task` of their configs; names as in the Hub's GLUE.
LABELS: dict[str, tuple[str, ...]] = {
    "cola": ("unacceptable", "acceptable"),
    "mnli": ("contradiction", "entailment", "neutral"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qnli": _ENTAILS,
    "qqp": ("not_duplicate", "duplicate"),
    "rte": _ENTAILS,
    "sst-2": ("negative", "positive"),
    "wnli": _ENTAILS[::-1],
}


def convert_checkpoint(
    path_or_repo: str | Path,
    save_directory: str | Path | None = None,
    *,
    labels: list[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **settings: Any,
) -> EarlyExitForSequenceClassification:
    """Our model with the weights of a checkpoint of DeeBERT's, BERxiT's or PABEE's authors, in eval mode.

    Method, encoder, depth and number of labels follow from names and shapes of the weights, and from `config.json`.

    Args:
        path_or_repo: folder with `config.json` and `model.safetensors` or `pytorch_model.bin`; or a name on the Hub.
        save_directory: also save the model there, with the checkpoint's tokenizer if it has one.
        labels: names of the classes, in the order of the classifier. Default: those of the checkpoint's config, or of
            its GLUE task, in the order of the authors' code: their RoBERTa has MNLI's last two the other way round.
        revision, token: of the download.
        **settings: of the method's config: `exit_threshold`, which no checkpoint has, `exit_layers`, ... With
            `exit_criterion="learned"` a BERxiT learns to exit as in its authors' code; that is the default for
            regression, and where the config says that it was trained so.

    Raises:
        ValueError: no such folder or Hub name; files missing or not readable; no checkpoint of these methods; tensors
            that are not understood, missing, or of another shape; labels that do not fit.
        TypeError: unknown settings.
    """
    if save_directory is not None and Path(save_directory).is_file():
        raise ValueError(f"save_directory: '{save_directory}' is a file; pass a folder")
    folder = folder_of(path_or_repo, revision, token)
    values, tensors = read_config(folder), read_tensors(folder)
    try:
        config = _config_of(values, tensors, labels, settings)
        converted = convert_state_dict(tensors, config)
    except ValueError as error:
        raise ValueError(f"path_or_repo: '{path_or_repo}' cannot be converted: {error}") from error
    model = AutoModelForSequenceClassification.from_config(config)
    model.load_state_dict(converted)
    if save_directory is not None:
        tokenizer = None
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            # Old checkpoints do not say of what kind they are.
            tokenizer = AutoTokenizer.from_pretrained(folder, config=config.encoder_config)
        model.save_pretrained(save_directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(save_directory)
    return model.eval()


def _config_of(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], labels: list[str] | None, settings: dict[str, Any]
) -> EarlyExitConfig:
    """Our config for a checkpoint with this config and these weights."""
    family = next((name for name in FAMILIES if any(key.startswith(f"{name}.") for key in tensors)), None)
    ramps = any(".highway." in key for key in tensors)
    learns = any(".lte_classifier." in key for key in tensors)
    if family is None or not (ramps or "classifiers.0.weight" in tensors):
        hint = (
            "; it has no exits: call the from_encoder_pretrained of a method" if "classifier.weight" in tensors else ""
        )
        raise ValueError(
            f"tensors: no off-ramps of DeeBERT or BERxiT and no classifiers of PABEE among {_listed(tensors)}{hint}"
        )
    if values.get("model_type", family) != family:
        raise ValueError(f"config.json: says '{values['model_type']}', but the tensors are those of '{family}'")
    # DeeBERT is for two families, and has no learning to exit, which BERxiT's files have even where it is not used.
    berxit = learns or family in ("albert", "distilbert")
    method = "pabee" if not ramps else "berxit" if berxit else "deebert"
    head = next((name for name in ("classifier.weight", "classifiers.0.weight") if name in tensors), None)
    if head is None:
        raise ValueError("tensors: no classifier.weight among them; pass the whole state dict")
    count = len(tensors[head])
    names = _label_names(values, family, count, labels)
    if names is not None:
        settings = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        } | settings
    if method == "berxit" and learns and "lte" in str(values.get("divide", "")):
        settings = {"exit_criterion": "learned"} | settings
    criterion = settings.get("exit_criterion", "learned" if count == 1 else None)
    if method == "berxit" and criterion == "learned" and family != "distilbert":
        settings = {"lte_variant": "authors"} | settings  # on DistilBERT theirs reads what the paper's does
    config_class = METHODS[method].config_class
    known = {*config_class.own_arguments(), *(field.name for field in dataclasses.fields(PreTrainedConfig))}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise TypeError(
            f"convert_checkpoint got unknown settings {unknown}; it takes those of {config_class.__name__}"
        )
    encoder = convert_encoder_config(values, family)
    return AutoConfig.for_model(method, **{"encoder_config": encoder, "num_labels": count} | settings)


def _label_names(
    values: Mapping[str, Any], family: str, count: int, given: list[str] | None
) -> list[str] | tuple[str, ...] | None:
    """Names of the classes in the order of the classifier; None where nobody knows them, or for regression."""
    if given is not None:
        if len(given) != count or count == 1:
            wanted = "none, this is a regression" if count == 1 else f"{count}, the classifier's"
            raise ValueError(f"labels: got {len(given)} names; pass {wanted}")
        return given
    saved = {int(number): name for number, name in (values.get("id2label") or {}).items()}
    names = [saved.get(number, f"LABEL_{number}") for number in range(count)]
    if count > 1 and any(name != f"LABEL_{number}" for number, name in saved.items()):
        if len(saved) != count:
            raise ValueError(f"config.json: names {len(saved)} labels, the classifier has {count}; pass labels=[...]")
        return names
    task = LABELS.get(str(values.get("finetuning_task")).lower().removesuffix("-mm"), ())
    if len(task) != count:
        return None
    return (task[0], task[2], task[1]) if count == 3 and family == "roberta" else task


def _listed(names: Iterable[str], most: int = 20) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


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
        raise ValueError(f"name: no rule for '{name}' and {depth} layers; see adaexit_hf.hub.conversion.RULES")
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
        ValueError: the state dict has parameters that no rule knows or the model has not, lacks some, or has some of
            another shape.
    """
    with torch.device("meta"):
        wanted = AutoModelForSequenceClassification.from_config(config).state_dict()
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
        raise ValueError(f"tensors: '{config.model_type}' has no place for {_listed(unknown)}")
    missing = wanted.keys() - converted.keys()
    if missing:
        raise ValueError(f"tensors: '{config.model_type}' needs {_listed(missing)} too; pass the whole state dict")
    shapes = {name: (tuple(value.shape), tuple(wanted[name].shape)) for name, value in converted.items()}
    wrong = [f"{name} of shape {found}, not {own}" for name, (found, own) in shapes.items() if found != own]
    if wrong:
        raise ValueError(f"tensors: got {_listed(wrong)}; do config.json and the weights belong together?")
    return converted
