"""Convert checkpoints of the papers' authors: rules that map the names of their parameters to this package's names.

castorini/DeeBERT and castorini/berxit are forks of Transformers 2.1. In their files the off-ramp after layer i + 1 is
`<base>.encoder.highway.<i>`, and the full-depth prediction is that of Transformers' own classifier. In PABEE's files,
which Transformers 3 and 4 contained as an example, the classifier after layer i + 1 is `classifiers.<i>`, and all
classifiers read Transformers' own pooler. Differences from the papers:

* The classifier of the last off-ramp is never trained, so it is left out: as in the papers, the last exit is
  Transformers' own classifier.
* BERxiT's learning-to-exit module predicts uncertainty in the authors' code and certainty here, so the sign of its
  weights is changed: an uncertainty below T there is a certainty above 1 - T here.
* BERxiT's files contain the tensors of the encoder a second time under the prefix `core.`.
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

from ..evaluation.trace import made_up
from ..models import METHODS
from ..models.configuration_early_exit import EarlyExitConfig
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from .checkpoint_files import TOKENIZER_FILES, folder_of, read_config, read_tensors

_PART = r"(?P<part>weight|bias)"
_LAYERS = r"(?:(?:bert|roberta|albert)\.encoder|distilbert\.transformer)"
_RAMP = rf"{_LAYERS}\.highway\.(?P<layer>\d+)"
# The authors' name -> this package's name; None leaves the tensor out. {exit} is `exits.<number>` of the exit at this
# layer, or of the last exit if the name has no layer; {ramp} is the same, except for the last off-ramp, which is not
# an exit; {pooler} is the shared pooler, or else the last exit.
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
# Classes in the order of the authors' code, by the `finetuning_task` in their configs; names as in GLUE on the Hub.
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
    """Convert a checkpoint of DeeBERT's, BERxiT's or PABEE's authors to a model of this package, in eval mode.

    Method, encoder, depth and number of labels follow from the names and shapes of the weights and from `config.json`.
    No code of the checkpoint is run.

    Args:
        path_or_repo: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, or a name on the Hub,
            e.g. "ji-xin/bert_base-MNLI-two_stage".
        save_directory: where to save the model, with the checkpoint's tokenizer if there is one. Default: not saved.
        labels: names of the classes, in the order of the classifier's outputs. Default: those in the checkpoint's
            config, or those of its GLUE task in the order of the authors' code, where RoBERTa has the last two classes
            of MNLI in the opposite order.
        revision: branch, tag or commit on the Hub. Default: the main branch.
        token: access token for the Hub. Default: the one of `hf auth login`.
        **settings: arguments of the method's config, such as `exit_threshold`, which no checkpoint has, or
            `exit_layers`. With `exit_criterion="learned"`, a BERxiT model uses the learning-to-exit module of the
            authors' code; that is the default for regression, and if the config says that the module was trained.

    Returns:
        The converted model.

    Raises:
        ValueError: if there is no such folder or Hub name; if files are missing or cannot be read; if the checkpoint
            is not one of these methods; if tensors are unknown, missing, or have another shape; or if the labels do
            not match the classifier.
        TypeError: if a setting is unknown.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import nn
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> authors = BertForSequenceClassification(encoder)
        >>> del authors.classifier
        >>> authors.classifiers = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))  # as in PABEE's files
        >>> with TemporaryDirectory() as folder:
        ...     authors.save_pretrained(folder)
        ...     model = convert_checkpoint(folder, exit_threshold=1)
        >>> type(model).__name__, model.config.num_labels, model.config.exit_layers
        ('PabeeForSequenceClassification', 3, [1, 2])
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
            # The configs of old checkpoints do not contain the model type.
            tokenizer = AutoTokenizer.from_pretrained(folder, config=config.encoder_config)
        model.save_pretrained(save_directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(save_directory)
    return model.eval()


def _config_of(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], labels: list[str] | None, settings: dict[str, Any]
) -> EarlyExitConfig:
    """The config of this package for a checkpoint with this `config.json` and these weights."""
    family = next((name for name in FAMILIES if any(key.startswith(f"{name}.") for key in tensors)), None)
    has_ramps = any(".highway." in key for key in tensors)
    has_lte = any(".lte_classifier." in key for key in tensors)
    if family is None or not (has_ramps or "classifiers.0.weight" in tensors):
        hint = (
            "; it has no exits: call the from_encoder_pretrained of a method" if "classifier.weight" in tensors else ""
        )
        raise ValueError(
            f"tensors: no off-ramps of DeeBERT or BERxiT and no classifiers of PABEE among {_listed(tensors)}{hint}"
        )
    if values.get("model_type", family) != family:
        raise ValueError(f"config.json: says '{values['model_type']}', but the tensors are those of '{family}'")
    # DeeBERT exists only for BERT and RoBERTa, and has no learning-to-exit module, which BERxiT's files always have.
    berxit = has_lte or family in ("albert", "distilbert")
    method = "pabee" if not has_ramps else "berxit" if berxit else "deebert"
    head = next((name for name in ("classifier.weight", "classifiers.0.weight") if name in tensors), None)
    if head is None:
        raise ValueError("tensors: no classifier.weight among them; pass the complete state dict")
    count = len(tensors[head])
    names = _label_names(values, family, count, labels)
    if names is not None:
        settings = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        } | settings
    if method == "berxit" and has_lte and "lte" in str(values.get("divide", "")):
        settings = {"exit_criterion": "learned"} | settings
    criterion = settings.get("exit_criterion", "learned" if count == 1 else None)
    if method == "berxit" and criterion == "learned" and family != "distilbert":
        settings = {"lte_variant": "authors"} | settings  # for DistilBERT it is the same as in the paper
    config_class = METHODS[method].config_class
    allowed = {*config_class.own_arguments(), *(field.name for field in dataclasses.fields(PreTrainedConfig))}
    unknown = sorted(settings.keys() - allowed)
    if unknown:
        raise TypeError(
            f"convert_checkpoint got unknown settings {unknown}; it takes those of {config_class.__name__}"
        )
    encoder = convert_encoder_config(values, family)
    return AutoConfig.for_model(method, **{"encoder_config": encoder, "num_labels": count} | settings)


def _label_names(
    values: Mapping[str, Any], family: str, count: int, labels: list[str] | None
) -> list[str] | tuple[str, ...] | None:
    """Names of the classes in the order of the classifier; None if they are unknown, or for regression."""
    if labels is not None:
        if len(labels) != count or count == 1:
            allowed = "none, this is a regression" if count == 1 else f"{count}, as many as the classifier has outputs"
            raise ValueError(f"labels: got {len(labels)} names; pass {allowed}")
        return labels
    saved = {int(number): str(name) for number, name in (values.get("id2label") or {}).items()}
    names = [saved.get(number, f"LABEL_{number}") for number in range(count)]
    if count > 1 and not made_up([saved[number] for number in sorted(saved)]):
        if len(saved) != count:
            raise ValueError(
                f"config.json: names {len(saved)} labels, but the classifier has {count}; pass labels=[...]"
            )
        return names
    task = LABELS.get(str(values.get("finetuning_task")).lower().removesuffix("-mm"), ())
    if len(task) != count:
        return None
    return (task[0], task[2], task[1]) if count == 3 and family == "roberta" else task


def _listed(names: Iterable[str], limit: int = 20) -> str:
    """The sorted names, at most `limit` of them, and how many more there are."""
    ordered = sorted(names)
    remainder = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + remainder


def convert_encoder_config(values: Mapping[str, Any], family: str) -> PreTrainedConfig:
    """The encoder's config from the authors' `config.json`, without entries that Transformers no longer has.

    Args:
        values: content of `config.json`.
        family: `model_type` of the encoder.

    >>> convert_encoder_config({"num_hidden_layers": 4, "use_bfloat16": False}, "bert").num_hidden_layers
    4
    """
    config_class = CONFIG_MAPPING[family]
    shared = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    of_family = {field.name for field in dataclasses.fields(config_class)} - shared
    return config_class(**{name: value for name, value in values.items() if name in of_family})


def convert_name(name: str, exit_layers: list[int], shared_pooler: bool = False) -> str | None:
    """This package's name of an authors' parameter, or None if the parameter is left out.

    Args:
        name: the name in the authors' checkpoint.
        exit_layers: the exit layers of the converted model.
        shared_pooler: whether the converted model has one pooler for all exits, as PABEE has.

    Raises:
        ValueError: if no rule matches the name.

    >>> layers = [1, 2, 3]
    >>> convert_name("bert.encoder.highway.1.pooler.dense.bias", layers), convert_name("classifier.weight", layers)
    ('exits.1.dense.bias', 'exits.2.classifier.weight')
    >>> convert_name("bert.pooler.dense.bias", layers), convert_name("bert.pooler.dense.bias", layers, True)
    ('exits.2.dense.bias', 'pooler.dense.bias')
    """
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    matches = ((re.fullmatch(rule, name), new_name) for rule, new_name in RULES)
    match, new_name = next((pair for pair in matches if pair[0]), (None, None))
    parts = match.groupdict() if match else {}
    depth = exit_layers[-1]
    layer = int(parts["layer"]) + 1 if "layer" in parts else depth
    if match is None or layer > depth:
        raise ValueError(f"name: no rule for '{name}' and {depth} layers; see adaexit_hf.hub.conversion.RULES")
    if new_name is None or layer not in exit_layers:
        return None
    exit = f"exits.{exit_layers.index(layer)}"
    # The last off-ramp is not an exit: its dense layer is only used by the learning-to-exit module.
    ramp = "lte_last" if layer == depth else exit
    return new_name.format(exit=exit, ramp=ramp, pooler="pooler" if shared_pooler else exit, **parts)


def convert_state_dict(tensors: Mapping[str, Tensor], config: EarlyExitConfig) -> dict[str, Tensor]:
    """All parameters of the model with this config, from the authors' state dict.

    Classifiers after layers that are not in `config.exit_layers` are left out, and so is the learning-to-exit module
    if it is not the model's exit criterion.

    Args:
        tensors: the authors' state dict.
        config: config of the converted model.

    Returns:
        The state dict of the converted model.

    Raises:
        ValueError: if a parameter matches no rule, does not exist in the model, is missing, or has another shape.
    """
    with torch.device("meta"):
        expected = AutoModelForSequenceClassification.from_config(config).state_dict()
    shared_pooler = "pooler.dense.weight" in expected
    converted: dict[str, Tensor] = {}
    unknown = []
    for old_name, value in tensors.items():
        try:
            new_name = convert_name(old_name, config.exit_layers, shared_pooler)
        except ValueError:
            unknown.append(old_name)
            continue
        if new_name is None or (new_name.startswith("lte") and new_name not in expected):
            continue
        if new_name not in expected:
            unknown.append(old_name)
        converted[new_name] = -value if new_name.startswith("lte.") else value
    if unknown:
        raise ValueError(f"tensors: '{config.model_type}' has no place for {_listed(unknown)}")
    missing = expected.keys() - converted.keys()
    if missing:
        raise ValueError(f"tensors: '{config.model_type}' needs {_listed(missing)} too; pass the complete state dict")
    mismatches = [
        f"{name} of shape {tuple(value.shape)}, not {tuple(expected[name].shape)}"
        for name, value in converted.items()
        if value.shape != expected[name].shape
    ]
    if mismatches:
        raise ValueError(f"tensors: got {_listed(mismatches)}; do config.json and the weights belong together?")
    return converted
