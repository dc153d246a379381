"""Made-up measurements of a model with three layers, and what its card says of them."""

import math
import re
from typing import Any

from helpers.tiny import build
from huggingface_hub import ModelCard

from adaexit_hf import CurvePoint
from adaexit_hf.hub.card_facts import CardDataset
from adaexit_hf.hub.model_card import build_model_card
from adaexit_hf.models import EarlyExitForSequenceClassification

NAME = "you/berxit-mrpc"
MRPC = CardDataset("GLUE MRPC", "nyu-mll/glue", config="mrpc", pairs=True)
THRESHOLD = 0.8137
FILES = ["README.md", "exit_layers.png", "tradeoff.png"]
Settings = dict[str, Any]


def curve_of(depth: int = 3, chosen: float = THRESHOLD) -> list[CurvePoint]:
    points = []
    for step in range(40):
        layers = 1 + (depth - 1) * step / 40
        threshold = chosen if step == 17 else 0.5 + step / 80
        points.append(CurvePoint(threshold, 0.85 - 0.1 * math.exp(-step / 7), layers, 1 - layers / depth))
    return [*points, CurvePoint(None, 0.8512, float(depth), 0.0)]


def facts(threshold: Any = THRESHOLD) -> Settings:
    curve = curve_of()
    chosen = next((point for point in curve if point.threshold == threshold), curve[-1])
    measured = {
        "samples": 408,
        "full_depth": {"f1": 0.8512, "pearson": 0.5},
        "at_threshold": {"f1": chosen.score, "pearson": 0.25},
        "exit_threshold": threshold,
        "mean_exit_layer": chosen.mean_layers,
        "saving": chosen.saving,
        "exit_histogram": {"1": 200, "2": 108, "3": 100},
    }
    return {"curve": curve, "metrics": {"validation": measured}, "dataset": MRPC, "base_model": "google-bert/bert"}


def two_labels(
    method: str = "berxit", threshold: Any = THRESHOLD, **kwargs: Any
) -> EarlyExitForSequenceClassification:
    return build(method, **{"num_labels": 2, "exit_threshold": threshold} | kwargs)


def card_of(threshold: Any = THRESHOLD, **more: Any) -> ModelCard:
    return build_model_card(two_labels(threshold=threshold), NAME, **facts(threshold) | more)


def table_under(card: ModelCard, header: str) -> list[list[str]]:
    """Cells of the first table whose header starts so, without the header."""
    lines = card.text.split(f"| {header} |", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[2:]]


def blocks(card: ModelCard) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card.text, flags=re.DOTALL | re.MULTILINE)
