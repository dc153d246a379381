"""Early exit for Hugging Face Transformers: encoders that decide per input how many layers to run."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_when_needed
from .version import __version__

if TYPE_CHECKING:
    from .card_facts import CardDataset, MeasuredSpeed
    from .conversion import convert_checkpoint
    from .curves import PairwiseAreas, areas_between
    from .evaluation import (
        CurvePoint,
        ExitTrace,
        OracleBound,
        area_under_curve,
        choose_threshold,
        collect_trace,
        exit_histogram,
        expected_saving,
        layer_scores,
        oracle_bound,
        oracle_exits,
        tradeoff_curve,
    )
    from .flops import flops_per_exit
    from .html_report import Report, TokenAttributions, build_report, token_attributions, write_report
    from .inference import Prediction, Predictions, predict, predict_stream
    from .interpretation import Attribution, Conductance, Explanation, explain, layer_conductance
    from .intervals import Interval, bootstrap_samples, bootstrap_seeds
    from .model_card import write_model_card
    from .models import *
    from .models import METHODS
    from .probes import (
        AttentionEntropy,
        BleuCorrelation,
        GoneOn,
        as_json,
        attention_entropy,
        confidence_bleu_correlation,
        had_they_gone_on,
    )
    from .pruning import prune_unused_layers
    from .reconstruction import DataCollatorWithTokenDepths, anytime_masked_lm, estimate_depths_by_reconstruction
    from .text_rows import DatasetError
    from .training import EarlyExitTrainer
    from .training_arguments import EarlyExitTrainingArguments

# The methods by model type, each with the stem of its classes: DactBertConfig, DactBertForSequenceClassification.
_STEMS = {
    "berxit": "Berxit",
    "dact-bert": "DactBert",
    "deebert": "DeeBert",
    "depth-adaptive": "DepthAdaptive",
    "fastbert": "FastBert",
    "pabee": "Pabee",
    "right-tool": "RightTool",
}
# Where the public names come from: they are imported when they are asked for, since torch and Trainer take seconds.
_NAMES = {
    "card_facts": ["CardDataset", "MeasuredSpeed"],
    "conversion": ["convert_checkpoint"],
    "curves": ["PairwiseAreas", "areas_between"],
    "evaluation": [
        "CurvePoint",
        "ExitTrace",
        "OracleBound",
        "area_under_curve",
        "choose_threshold",
        "collect_trace",
        "exit_histogram",
        "expected_saving",
        "layer_scores",
        "oracle_bound",
        "oracle_exits",
        "tradeoff_curve",
    ],
    "flops": ["flops_per_exit"],
    "html_report": ["Report", "TokenAttributions", "build_report", "token_attributions", "write_report"],
    "inference": ["Prediction", "Predictions", "predict", "predict_stream"],
    "interpretation": ["Attribution", "Conductance", "Explanation", "explain", "layer_conductance"],
    "intervals": ["Interval", "bootstrap_samples", "bootstrap_seeds"],
    "model_card": ["write_model_card"],
    "models": [
        "METHODS",
        *(stem + suffix for stem in _STEMS.values() for suffix in ("Config", "ForSequenceClassification")),
    ],
    "probes": [
        "AttentionEntropy",
        "BleuCorrelation",
        "GoneOn",
        "as_json",
        "attention_entropy",
        "confidence_bleu_correlation",
        "had_they_gone_on",
    ],
    "pruning": ["prune_unused_layers"],
    "reconstruction": ["DataCollatorWithTokenDepths", "anytime_masked_lm", "estimate_depths_by_reconstruction"],
    "text_rows": ["DatasetError"],
    "training": ["EarlyExitTrainer"],
    "training_arguments": ["EarlyExitTrainingArguments"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)

register_when_needed(_STEMS)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
