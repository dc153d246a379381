"""Explain predictions and exits: token attributions, layer conductance, attention entropy (extra `interpret`)."""

from .attribution import Attribution, Conductance, Explanation, explain, layer_conductance
from .probes import AttentionEntropy, BleuCorrelation, as_json, attention_entropy, confidence_bleu_correlation

__all__ = [
    "AttentionEntropy",
    "Attribution",
    "BleuCorrelation",
    "Conductance",
    "Explanation",
    "as_json",
    "attention_entropy",
    "confidence_bleu_correlation",
    "explain",
    "layer_conductance",
]
