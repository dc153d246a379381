"""Model cards: the README.md of a model folder, with pictures: what the model is, how to load it, its results."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from ..evaluation.certificate_file import SealedCertificate
from ..evaluation.curves import CurvePoint
from ..evaluation.summary import exit_settings
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from ..visualization.figures import exit_figure, tradeoff_figure
from . import card_text as text
from .card_facts import CardDataset, MeasuredSpeed, SplitMetrics, check_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("model_card_template.md")
MARKER = "<!-- Written by adaexit_hf, which may replace this file. Delete this line to keep your own text. -->"
TASK = "text-classification"
PICTURES = TRADEOFF, EXITS = "tradeoff.png", "exit_layers.png"
# Metrics that have another name on the Hub.
HUB_METRICS = {"pearson": "pearsonr", "f1_micro": "f1", "f1_macro": "f1"}
TEXTS = {
    False: '["a gripping film", "not the worst, but hardly good"]',
    True: '[("He said so.", "He told them so."), ("It rained.", "The sun shone.")]',
}
PIPELINE_TEXTS = {False: TEXTS[False], True: '[{"text": "He said so.", "text_pair": "He told them so."}]'}


def write_model_card(
    model: EarlyExitForSequenceClassification,
    folder: str | Path,
    *,
    name: str | None = None,
    curve: Sequence[CurvePoint] = (),
    metrics: Mapping[str, SplitMetrics] | None = None,
    overwrite: bool = False,
    **facts: Any,
) -> Path:
    """Write the model card, `README.md` with its pictures, into a model's folder.

    Either all files are written, or the folder stays as it was. Pictures need matplotlib; without it a warning says
    so, and the card has no pictures. The card only reports the facts that are passed.

    Args:
        model: an early-exit model.
        folder: the folder, which is created if it does not exist.
        name: the name for `from_pretrained` in the card's code, e.g. "you/berxit-mrpc". Default: the folder's name.
        curve: the result of `tradeoff_curve` on the first split of `metrics`, with its first metric. Default: no
            curve.
        metrics: split -> measurements: "at_threshold" (metric -> value) and optionally "full_depth", "exit_threshold",
            "exit_criterion", "exit_temperatures", "samples", "mean_exit_layer", "saving" and "exit_histogram", as in
            `metrics.json`. Default: none.
        overwrite: replace a README.md that this function did not write. Default: False.
        **facts: more facts for the card: `dataset` (a `CardDataset`), `training` (argument -> value), `speed` (a
            `MeasuredSpeed`), `base_model` (name of the pretrained encoder on the Hub), `title`, `language`, `license`,
            `certificates` (from `verify_certificates`) and `tags`.

    Returns:
        The path of the card.

    Raises:
        ValueError: if a number is NaN or infinite; if metrics, curve or speed were measured at another threshold,
            criterion or temperatures than the model's; or if a speed-up is not positive, or at a threshold that the
            curve does not have.
        TypeError: if `facts` has an unknown name.
        FileExistsError: if there is a README.md that this function did not write.
        OSError: if the files cannot be written.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.models import BerxitConfig, BerxitForSequenceClassification
        >>> encoder = BertConfig(
        ...     vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        ... )
        >>> config = BerxitConfig(encoder_config=encoder, num_labels=2, exit_threshold=0.9)
        >>> with TemporaryDirectory() as folder:
        ...     path = write_model_card(BerxitForSequenceClassification(config), folder, name="you/berxit-mrpc")
        ...     "The saved threshold is 0.9." in path.read_text(encoding="utf-8")
        True
    """
    folder = Path(folder)
    path = folder / "README.md"
    if not overwrite and path.exists() and MARKER not in path.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(
            f"folder: '{path}' was not written by adaexit_hf, so it is not replaced; move it, or pass overwrite=True"
        )
    pictures = _pictures(model, curve, metrics or {})
    if pictures and find_spec("matplotlib") is None:
        logger.warning("the model card has no pictures, which need matplotlib: pip install adaexit_hf[plot]")
        pictures = {}
    name = name or folder.resolve().name
    card = build_model_card(model, name, curve=curve, metrics=metrics, pictures=pictures, **facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The name starts with "_" because uploads leave out such files, in case an interrupted run does not remove it.
        with TemporaryDirectory(dir=folder, prefix="_card-") as scratch:
            for picture, draw in pictures.items():
                draw().savefig(Path(scratch, picture))
            card.save(Path(scratch, path.name))
            for file in (*pictures, path.name):  # the card last, so that all its pictures exist
                os.replace(Path(scratch, file), folder / file)
    except OSError as error:
        message = f"folder: the model card could not be written into '{folder}': {error.strerror or error}"
        raise OSError(error.errno, message) from error
    return path


def build_model_card(
    model: EarlyExitForSequenceClassification,
    name: str,
    *,
    curve: Sequence[CurvePoint] = (),
    metrics: Mapping[str, SplitMetrics] | None = None,
    dataset: CardDataset | None = None,
    training: Mapping[str, Any] | None = None,
    speed: MeasuredSpeed | None = None,
    base_model: str | None = None,
    title: str | None = None,
    language: str | list[str] | None = None,
    license: str | None = None,
    certificates: Sequence[SealedCertificate] = (),
    tags: Iterable[str] = (),
    pictures: Collection[str] = (),
) -> ModelCard:
    """Build the model card without writing it; it only reports the facts that are passed.

    Args:
        model: an early-exit model.
        name: the name for `from_pretrained` in the card's code.
        curve: the result of `tradeoff_curve` on the first split of `metrics`, with its first metric.
        metrics: split -> measurements.
        dataset: the data set that the model was trained and evaluated on.
        training: argument -> value, as from `training_facts`; `stage_overrides` are shown with their stages; `stage`
            is the only stage that was run, `kept_classifier` names a classifier that got exits and stayed as it is.
        speed: the measured speed-up.
        base_model: name on the Hub of the encoder that the training started from.
        title: heading. Default: the last part of `name`.
        language: one or several language codes of the Hub. Default: left out.
        license: license identifier of the Hub. Default: left out.
        certificates: the model's certificates, which must hold. Default: none.
        tags: tags besides those that every card has.
        pictures: files beside the card to show, from "tradeoff.png" and "exit_layers.png".

    Returns:
        The card.

    Raises:
        ValueError: if a number is NaN or infinite; if metrics, curve or speed were measured at another threshold,
            criterion or temperatures than the model's; or if a speed-up is not positive, or at a threshold that the
            curve does not have.
    """
    config, splits = model.config, metrics or {}
    check_facts(exit_settings(config), curve, splits, speed)
    title = title or name.rstrip("/").split("/")[-1]
    results = _eval_results(splits, dataset or CardDataset("unknown"))
    metric_names = dict.fromkeys(metric for measured in splits.values() for metric in measured["at_threshold"])
    card_data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",  # it loads the model with the checkpoint's code; this package is a tag
        pipeline_tag=TASK,
        base_model=base_model,
        datasets=[dataset.hub_id] if dataset and dataset.hub_id else None,
        metrics=list(dict.fromkeys(HUB_METRICS.get(metric, metric) for metric in metric_names)) or None,
        tags=["early-exit", config.model_type, "adaexit_hf", *tags],
        model_name=title if results else None,  # only part of the results; without them a separate field
        eval_results=results or None,
    )
    metric = text.headline(splits)
    pairs, settings = bool(dataset and dataset.pairs), dict(training or {})
    overrides = settings.pop("stage_overrides", None) or {}
    kept, stage_run = settings.pop("kept_classifier", None), settings.pop("stage", None)
    stages = [stage for stage in model.stages if stage_run in (None, stage.name)]
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        marker=MARKER,
        title=title,
        checkpoint=name,
        family=config.encoder_config.model_type,
        depth=config.exit_layers[-1],
        exits=text.exits(config.exit_layers),
        parameters=f"{model.num_parameters() / 1e6:.1f} M",
        paper=model.paper,
        rule=text.exit_rule(model),
        one_layer=config.exit_criterion == "layer",
        results=text.results_table(splits, dataset),
        certificates=list(map(str, certificates)),
        texts=TEXTS[pairs],
        pipeline_texts=PIPELINE_TEXTS[pairs],
        regression=config.num_labels == 1,
        multi_label=config.multi_label,
        pictures=pictures,
        metric=metric,
        measured_on=text.measured_on(splits),
        honest=any("cross_fitted_thresholds" in measured for measured in splits.values()),
        table=text.threshold_table(model, curve, metric, speed),
        speed_note=text.speed_note(speed),
        stages=text.stages_table(stages, overrides),
        kept_classifier=kept,
        training=text.settings_table("argument", settings),
        settings=text.settings_table("setting", text.method_settings(model)),
        versions=text.versions(),
        limitations=text.limitations(model, splits, speed),
    )


def _eval_results(metrics: Mapping[str, SplitMetrics], dataset: CardDataset) -> list[EvalResult]:
    """The results that the Hub shows beside a card: every metric with early exit, and at full depth."""
    results = []
    for split, measured in metrics.items():
        data = measured.get("data", {})
        of = dataset if data.get("name") in (None, dataset.name) else CardDataset(data["name"])
        # Cross-fitted results are of thresholds that are close to the saved one.
        kinds: dict[str, Mapping[str, float]] = {"with early exit": measured["at_threshold"]}
        if "full_depth" in measured:
            kinds["at full depth"] = measured["full_depth"]
        for kind, values in kinds.items():
            for metric, value in values.items():
                results.append(
                    EvalResult(
                        task_type=TASK,
                        dataset_type=of.hub_id or "unknown",
                        dataset_name=of.name,
                        dataset_config=of.config,
                        dataset_split=split if of is dataset else data["split"],
                        dataset_revision=of.revision,
                        metric_type=HUB_METRICS.get(metric, metric),
                        metric_name=f"{text.readable(metric)} {kind}",
                        metric_value=float(value),  # YAML cannot write NumPy numbers
                    )
                )
    return results


def _pictures(
    model: EarlyExitForSequenceClassification, curve: Sequence[CurvePoint], metrics: Mapping[str, SplitMetrics]
) -> dict[str, Callable[[], "Figure"]]:
    """File name -> function that draws the picture, for the pictures that the facts suffice for."""
    depth, chosen = model.config.exit_layers[-1], model.config.exit_threshold
    measured_on = text.measured_on(metrics)
    pictures: dict[str, Callable[[], Figure]] = {}
    if len({point.mean_layers for point in curve}) > 1:
        pictures[TRADEOFF] = partial(tradeoff_figure, curve, text.headline(metrics), depth, chosen, measured_on)
    histogram = next((measured.get("exit_histogram") for measured in metrics.values()), None)
    if histogram and len(histogram) > 1 and chosen is not None:
        layers = {int(layer): count for layer, count in histogram.items()}
        pictures[EXITS] = partial(exit_figure, layers, depth, measured_on)
    return pictures
