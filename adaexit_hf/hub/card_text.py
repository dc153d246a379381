"""The sentences and tables of a model card, as Markdown."""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers

from ..evaluation.curves import CurvePoint, check_direction
from ..evaluation.trace import READY_IN_WORDS
from ..models.modeling_early_exit import EarlyExitForSequenceClassification, Stage
from ..version import __version__
from .card_facts import CardDataset, MeasuredSpeed, SplitMetrics

UNITS = {"entropy": " nats", "patience": " exits in a row that agree"}  # other criteria have no unit
HONEST = (
    "cross-fitted: each half of the texts was answered with a threshold that was chosen on the other half, so that no "
    "score is of texts that chose it"
)
NAMES = {
    "f1": "F1",
    "f1_micro": "micro F1",
    "f1_macro": "macro F1",
    "pearson": "Pearson correlation",
    "spearmanr": "Spearman correlation",
}
ROWS = 10  # in the table of thresholds, besides the saved threshold and full depth


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table.

    >>> print(table(["threshold", "F1"], [["0.3", 0.85]]))
    | threshold | F1 |
    |---|---|
    | 0.3 | 0.85 |
    """
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("|---" * len(line) + "|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in cells)


def readable(metric: str) -> str:
    """Name of a metric as it is shown.

    >>> readable("f1"), readable("matthews_correlation")
    ('F1', 'matthews correlation')
    """
    return NAMES.get(metric, metric.replace("_", " "))


def shown_points(curve: Sequence[CurvePoint], chosen: Any, count: int = ROWS) -> list[CurvePoint]:
    """At most `count` points of a curve, spread evenly over the mean layers, and the chosen one and full depth.

    Args:
        curve: the trade-off curve.
        chosen: the saved threshold, which is always shown.
        count: number of points.

    >>> curve = [CurvePoint(step / 10, 0.8, 1 + step / 2, 0.0) for step in range(9)]
    >>> [point.mean_layers for point in shown_points(curve, chosen=0.1, count=3)]
    [1.0, 1.5, 3.0, 5.0]
    """
    if not curve:
        return []
    low, high = (select(point.mean_layers for point in curve) for select in (min, max))
    targets = [low + (high - low) * step / max(1, count - 1) for step in range(count)]
    shown = [min(curve, key=lambda point: abs(point.mean_layers - target)) for target in targets]
    shown += [point for point in curve if point.threshold is None or point.threshold == chosen]
    return _once(curve, shown)


def _once(curve: Sequence[CurvePoint], shown: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Each shown point once, by mean layers, and full depth last; others keep the order of the curve."""
    once = [point for place, point in enumerate(curve) if point in shown and point not in curve[:place]]
    return sorted(once, key=lambda point: (point.mean_layers, point.threshold is None))


def threshold_table(
    model: EarlyExitForSequenceClassification, curve: Sequence[CurvePoint], metric: str, speed: MeasuredSpeed | None
) -> str:
    """A table with threshold, score, mean layers, saving and, if it was measured, speed-up; "" without a curve."""
    chosen, speed_ups = model.config.exit_threshold, speed.speed_up if speed else {}
    points = shown_points(curve, chosen) + [point for point in curve if point.threshold in speed_ups]
    rows = []
    for point in _once(curve, points):
        name = "none: full depth" if point.threshold is None else f"{point.threshold:.6g}"
        score = f"{point.score:.4f}{', no better than the majority' * point.no_better_than_majority}"
        cells = [name, score, f"{point.mean_layers:.2f}", f"{point.saving:.1%}"]
        if speed:
            measured = None if point.threshold is None else speed_ups.get(point.threshold)
            cells.append("not measured" if measured is None else f"{measured:.2f}x")
        if point.threshold == chosen:
            cells = [f"**{cells[0]}, saved**", *(f"**{cell}**" for cell in cells[1:])]
        rows.append(cells)
    metric = metric if check_direction(curve) else f"{metric} (lower is better)"
    header = ["threshold", metric, f"mean layers of {model.config.exit_layers[-1]}", "layers saved"]
    return table(header + (["speed-up"] if speed else []), rows) if rows else ""


def speed_note(speed: MeasuredSpeed | None) -> str:
    """How the speed-up was measured, or that it was not."""
    if speed is None:
        return (
            "The share of layers saved is not the share of time saved, which depends on the machine and the batches "
            "and was not measured for this model."
        )
    return f"Speed-up: time at full depth divided by time with early exit; {speed.how}; on {speed.machine}."


# What the exits read, where it is not what the paper of the method describes.
HEADS = {
    "dense": "the encoder family's own classification head",
    "attention-pool": "a head that learns which tokens to read (attention pooling with learned queries)",
    "pair": "a head that compares the two texts of a pair, [u; v; |u - v|; u * v] of their means",
    "attention-block": "FastBERT's branch classifier",
}


def exit_heads(model: EarlyExitForSequenceClassification) -> str:
    """What heads the exits have, in one sentence; "" if those of the paper."""
    config = model.config
    last = config.last_exit_head
    kept = "" if last is None else f" The last exit is {HEADS[last]}, on the sentence vector that the family reads."
    if config.head == config.paper_head:
        return kept
    every = "Every exit" if last is None else "Every exit but the last"
    return f" {every} is {HEADS[config.head]}, which is not from the method's paper.{kept}"


def exit_rule(model: EarlyExitForSequenceClassification) -> str:
    """When a text exits, in one sentence, and the saved threshold."""
    config = model.config
    if len(config.exit_layers) == 1:
        return f"There is only one exit, so every text runs all {config.exit_layers[-1]} layers.{exit_heads(model)}"
    if config.exit_criterion == "layer" and isinstance(config.exit_threshold, float | int):
        return f"{saved_threshold(config)}{exit_heads(model)}"
    unit, bounds = UNITS.get(config.exit_criterion, ""), config.threshold_bounds
    rule = (
        f"A text exits at the first exit layer whose readiness score (`{config.exit_criterion}`) is "
        f"{READY_IN_WORDS[model.ready.__name__]} the threshold, and otherwise at the last layer. The threshold is "
        f"between {bounds[0]:g} and {bounds[1]:.4g}{unit}.{exit_heads(model)}"
    )
    return f"{rule} {saved_threshold(config)}"


def saved_threshold(config: Any) -> str:
    """The sentence about the threshold in a model's config."""
    if config.exit_criterion == "layer" and isinstance(config.exit_threshold, float | int):
        last = next(layer for layer in config.exit_layers if layer >= config.exit_threshold)
        return f"Every text leaves after layer {last} (exit criterion `layer`)."
    if config.exit_threshold is None:
        return "No threshold is saved: until you choose one, every text runs all layers."
    numbers = config.exit_threshold if isinstance(config.exit_threshold, list) else [config.exit_threshold]
    saved = ", ".join(f"{number:.6g}" for number in numbers)
    if len(numbers) > 1:
        return f"The saved thresholds are {saved} (one per exit)."
    return f"The saved threshold is {saved}."


def exits(layers: Sequence[int]) -> str:
    """The exit layers in words.

    >>> exits([1, 2, 3]), exits([4, 8, 12]), exits([6])
    ('every layer', 'layers 4, 8, 12', 'layer 6')
    """
    if list(layers) == list(range(1, layers[-1] + 1)) and len(layers) > 1:
        return "every layer"
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def headline(metrics: Mapping[str, SplitMetrics]) -> str:
    """The readable name of the first metric of the first split, which is the curve's."""
    for measured in metrics.values():
        return readable(next(iter(measured["at_threshold"]), "score"))
    return "score"


def measured_on(metrics: Mapping[str, SplitMetrics]) -> str:
    """The first split and its number of texts; "" without any."""
    for split, measured in metrics.items():
        return f"{split}, {measured['samples']} texts" if "samples" in measured else split
    return ""


def results_table(metrics: Mapping[str, SplitMetrics], dataset: CardDataset | None) -> str:
    """A table with one row per split and metric; "" without any."""
    rows = []
    for split, measured in metrics.items():
        full: Mapping[str, float] = measured.get("full_depth", {})
        layers = [
            f"{measured['mean_exit_layer']:.2f}" if "mean_exit_layer" in measured else "-",
            f"{measured['saving']:.1%}" if "saving" in measured else "-",
        ]
        texts = measured.get("samples", "-")
        for metric, value in measured["at_threshold"].items():
            at_full_depth = f"{full[metric]:.4f}" if metric in full else "-"
            rows.append([split, texts, readable(metric), at_full_depth, f"{value:.4f}", *layers])
    header = ["split", "texts", "metric", "full depth", "with exits", "mean exit layer", "layers saved"]
    introduction = f"Measured on {dataset_link(dataset)}:\n\n" if dataset else ""
    honest = [f"`{split}`" for split, measured in metrics.items() if "cross_fitted_thresholds" in measured]
    note = f"\n\nThe results on {', '.join(honest)} with exits are {HONEST}." if honest else ""
    majority = majority_note(metrics)
    return introduction + table(header, rows) + note + (f"\n\n{majority}" if majority else "") if rows else ""


def majority_note(metrics: Mapping[str, SplitMetrics]) -> str:
    """What a constant answer scores on each split, as a paragraph; "" where it is not known.

    >>> majority_note({"test": {"at_threshold": {"f1": 0.8}, "majority": {"f1": 0.8122}}}).split("; ")
    ['Without reading the text (always the most frequent label', 'for numbers their mean): F1 0.8122 on `test`. \
Early exit is no better than that in F1 on `test`.']
    """
    known = {split: measured["majority"] for split, measured in metrics.items() if "majority" in measured}
    listed = [
        f"{readable(name)} {value:.4f} on `{split}`" for split, of in known.items() for name, value in of.items()
    ]
    worse = [
        f"{readable(name)} on `{split}`"
        for split, of in known.items()
        for name, value in of.items()
        if metrics[split]["at_threshold"].get(name, math.inf) <= value
    ]
    told = f" Early exit is no better than that in {', '.join(worse)}." if worse else ""
    note = f"Without reading the text (always the most frequent label; for numbers their mean): {', '.join(listed)}."
    return note + told if listed else ""


def dataset_link(dataset: CardDataset) -> str:
    """The name of the data set, with a link if it is on the Hub."""
    if dataset.hub_id is None:
        return dataset.name
    return f"[{dataset.name}](https://huggingface.co/datasets/{dataset.hub_id})"


def stages_table(stages: Sequence[Stage], overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the training stages, in order."""
    rows = [
        [
            f"`{stage.name}`",
            ", ".join(f"`{objective}`" for objective in stage.objectives),
            ", ".join(f"`{name}`" for name in stage.frozen) or "-",
            ", ".join(f"`{name}={value}`" for name, value in overrides.get(stage.name, {}).items()) or "-",
        ]
        for stage in stages
    ]
    return table(["stage", "objectives, alternating by optimizer step", "frozen", "arguments of this stage"], rows)


def settings_table(header: str, values: Mapping[str, Any]) -> str:
    """A table of names and values; "" without any."""
    rows = [[f"`{name}`", f"`{value}`"] for name, value in values.items()]
    return table([header, "value"], rows) if rows else ""


def method_settings(model: EarlyExitForSequenceClassification) -> dict[str, Any]:
    """The arguments of the method's config that are not None."""
    names = (name for name in model.config.own_arguments() if name != "encoder_config")
    values = {name: getattr(model.config, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def versions() -> str:
    """The versions of this package, Transformers, PyTorch and Python."""
    packages = {"adaexit_hf": __version__, "Transformers": transformers.__version__, "PyTorch": torch.__version__}
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{listed}, Python {platform.python_version()}"


def limitations(
    model: EarlyExitForSequenceClassification, metrics: Mapping[str, SplitMetrics], speed: MeasuredSpeed | None
) -> list[str]:
    """The limitations of the model, one or two sentences each."""
    config = model.config
    if config.num_labels == 1:
        output = "It predicts one number, in the unit of the labels that it was trained on."
    else:
        labels = ", ".join(f"`{config.id2label[index]}`" for index in range(config.num_labels))
        output = f"It predicts one of {labels} for every text, also for a text to which none of them applies."
    if config.multi_label:
        output = (
            f"It predicts none, one or several of {labels} for every text: those with a probability above 0.5. The "
            "paper defines exits for one label per text; for several, a text is as ready as its least sure label, "
            "which is a rule of adaexit_hf. Accuracy is the share of texts whose whole label set is right."
        )
    sentences = [
        output,
        "Biases in the texts that the encoder was pretrained on affect the predictions of every exit.",
        "A threshold is only valid for texts similar to those on which it was chosen. For other texts, choose it anew "
        "on labelled examples: an exit can be confident and wrong.",
        "`output_hidden_states`, `output_attentions` and compiled or exported models run all layers.",
    ]
    split = next(iter(metrics), None)
    if split is not None and "cross_fitted_thresholds" not in metrics[split]:
        sentences.append(
            f"If the threshold was chosen on `{split}`, the results there are slightly better than on new texts."
        )
    if speed is None:
        sentences.append("The inference time was not measured.")
    return sentences
