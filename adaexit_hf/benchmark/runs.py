"""The runs that a benchmark compares: ways to classify the same texts, with and without exits, and expected results.

Every run classifies the same texts and ends with all logits on the host, in the order of the texts. The classifier
without exits is Transformers' own, with the same weights and the same attention implementation.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, pipeline

from ..data.batches_by_length import groups
from ..inference.prediction import predict
from ..models import EarlyExitForSequenceClassification
from ..models.encoder_layers import family_of
from ..models.exit_criteria import counted, entropy, first_ready
from ..models.exit_heads import ExitFeatures, ExitHead
from ..models.modeling_early_exit import EarlyExitOutput
from ..models.padded_batches import full_depth, padded_batch, read_rows

Row = dict[str, list[int]]
# Logits, (texts, labels), float32, and exit layers, (texts,), or None for runs without exits.
RunOutput = tuple[Tensor, Tensor | None]
Classify = Callable[[list[int], dict[str, Tensor]], RunOutput]
# Allowed difference of logits and scores between runs, relative to the largest logit or 1, since results in other
# batches round differently.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class AnswersDifferError(RuntimeError):
    """A run returned other logits or exit layers than expected, so its time is meaningless."""


class Expected(NamedTuple):
    """What the runs must return.

    Attributes:
        logits: Logits of runs with early exit, (texts, labels), float32.
        exit_layer: Exit layer of every text, 1..L, (texts,).
        full_depth: Logits of the model without early exit, (texts, labels).
        stock: Logits of the stock classifier, (texts, labels). They differ from `full_depth` if it has another head.
        unambiguous: False for texts with a score so close to a threshold that rounding may change the exit layer,
            (texts,).
        tolerance: Allowed difference of a logit.
    """

    logits: Tensor
    exit_layer: Tensor
    full_depth: Tensor
    stock: Tensor
    unambiguous: Tensor
    tolerance: float


@dataclass
class Workload:
    """A model with a threshold, texts to classify, and the expected results.

    Attributes:
        model: The early-exit model, in eval mode, with a threshold in its config.
        stock: Transformers' classifier with the same weights, see `stock_twin`.
        static: The same classifier, compiled if `torch.compile` is measured.
        rows: Tokenized texts.
        expected: What every run must return.
        plan: Planned exit layer of every text, or None for a trained model.
        texts: The texts of `rows` before tokenization, as `predict` takes them; None for planted texts.
        tokenizer: Tokenizer of the texts; None for planted texts.
        max_memory: Bytes that a window of `predict` may use.
    """

    model: EarlyExitForSequenceClassification
    stock: Any
    static: Any
    rows: list[Row]
    expected: Expected
    plan: list[int] | None = None
    texts: list[Any] | None = None
    tokenizer: Any = None
    max_memory: int = 2**30

    @property
    def layer_speed_up(self) -> float:
        """The number of layers divided by the mean exit layer."""
        return float(self.model.config.exit_layers[-1] / self.expected.exit_layer.double().mean().item())

    @property
    def token_layer_speed_up(self) -> float:
        """The same ratio with every text weighted by its number of tokens."""
        tokens = torch.tensor([len(row["input_ids"]) for row in self.rows]).double()
        depth = self.model.config.exit_layers[-1]
        return float(depth * tokens.sum().item() / (tokens * self.expected.exit_layer).sum().item())


def expected_outputs(
    model: EarlyExitForSequenceClassification, rows: list[Row], batch_size: int = 32, plan: list[int] | None = None
) -> Expected:
    """Compute from a full-depth pass what runs with early exit must return.

    Args:
        model: The early-exit model, with a threshold in its config.
        rows: Tokenized texts.
        batch_size: Texts per batch.
        plan: Planned exit layers, for a planted model.

    Raises:
        ValueError: The config has no threshold.
        AnswersDifferError: The exit layers differ from the plan.
    """
    thresholds = model.thresholds_in_use(None, None)
    if thresholds is None:
        raise ValueError(
            "exit_threshold: got None; set model.config.exit_threshold, e.g. to the result of choose_threshold"
        )
    logits, scores = full_depth(model, rows, batch_size)
    pairs = zip(scores.unbind(dim=1), thresholds, strict=True)
    chosen = first_ready(torch.stack([model.ready(score, threshold) for score, threshold in pairs], dim=1))
    depths = torch.tensor(model.config.exit_layers)[chosen]
    if plan is not None and depths.tolist() != plan:
        raise AnswersDifferError("full depth: texts exit at other layers than planned")
    tolerance = TOLERANCE[model.dtype]
    # A count is a whole number, which rounding does not change.
    slack = 0.0 if counted(model.config.exit_criterion) else tolerance
    close = ((scores - torch.tensor(thresholds)).abs() < slack)[:, :-1]
    reached = torch.arange(close.shape[1]) <= chosen[:, None]
    tolerance *= max(1.0, logits.abs().max().item())
    exit_logits, full_logits = logits[torch.arange(len(rows)), chosen], logits[:, -1]
    return Expected(exit_logits, depths, full_logits, full_logits, ~(close & reached).any(dim=1), tolerance)


def check_output(name: str, output: RunOutput, expected: Expected) -> None:
    """Compare the result of a run with the expected one.

    Args:
        name: Name of the run, one of `RUNS`.
        output: Its logits and exit layers.
        expected: The expected results of all runs.

    Raises:
        AnswersDifferError: Logits or exit layers differ.
    """
    logits, layers = output
    expected_logits = expected.full_depth if name == "pipeline-full-depth" else expected.stock
    if layers is not None:
        expected_logits = expected.logits
        wrong = ((layers != expected.exit_layer) & expected.unambiguous).nonzero().flatten().tolist()
        if wrong:
            raise AnswersDifferError(
                f"{name}: {len(wrong)} of {len(layers)} texts exit at another layer than expected, first text "
                f"{wrong[0]}: {int(layers[wrong[0]])} instead of {int(expected.exit_layer[wrong[0]])}"
            )
    difference = (logits - expected_logits).abs().amax(dim=1)
    wrong = (
        (~(difference <= expected.tolerance) & (expected.unambiguous | (layers is None))).nonzero().flatten().tolist()
    )
    if wrong:
        raise AnswersDifferError(
            f"{name}: logits of {len(wrong)} of {len(logits)} texts differ by more than {expected.tolerance:.2g}, "
            f"first text {wrong[0]}: by {difference[wrong[0]]:.2g}"
        )


def stock_twin(model: EarlyExitForSequenceClassification) -> PreTrainedModel:
    """Transformers' own classifier with the encoder's weights and, if they fit, those of the last exit's head."""
    config = copy.deepcopy(model.config.encoder_config)
    config.id2label, config.label2id = model.config.id2label, model.config.label2id
    implementation = model.encoder.config._attn_implementation
    stock = AutoModelForSequenceClassification.from_config(config, attn_implementation=implementation)
    stock.base_model.load_state_dict(model.encoder.state_dict(), strict=False)  # the encoder has no pooler
    heads = [module for module in model.modules() if isinstance(module, ExitFeatures)]
    if heads:
        sources = {"dense": heads[-1].dense, "norm": heads[-1].norm, "classifier": model.classifiers[-1]}
        for part, path in family_of(config).classifier.items():
            target = stock.get_submodule(path.format(base=stock.base_model_prefix))
            target.load_state_dict(sources[part].state_dict(), strict=False)
    return cast(PreTrainedModel, stock.to(device=model.device, dtype=model.dtype).eval())


def make_run(work: Workload, name: str, batch_size: int, batch_tokens: int, ready: bool) -> Callable[[], RunOutput]:
    """Build a function that classifies the texts of a workload in one of the ways in `RUNS`.

    Args:
        work: The model and the texts.
        name: Name of the run, one of `RUNS`.
        batch_size: Texts per batch, for runs with a fixed batch size.
        batch_tokens: Tokens per batch, padding included, for `predict` and "static-tokens".
        ready: Whether batches are padded and moved to the device beforehand. `predict` pads within its measured time,
            so a run that is compared with it must do the same.

    Raises:
        ValueError: The name is unknown, or the workload lacks what the run needs.
    """
    if name not in RUNS:
        raise ValueError(f"run: got {name!r}; choose one of {', '.join(RUNS)}")
    if name in FROM_TEXTS and work.texts is None:
        raise ValueError(f"run: '{name}' starts from texts, which a planted model does not have; pass a checkpoint")
    if name in ("predict", "predict-texts"):
        return _predict(work, name == "predict-texts", batch_tokens)
    if name == "static-texts":
        return _static_texts(work, batch_size)
    if name in FROM_TEXTS:
        return _pipeline(work, name == "pipeline", batch_size)
    size = 1 if name in SINGLE else 0 if name == "static-tokens" else batch_size
    lengths = [len(row["input_ids"]) for row in work.rows]
    sizes = groups(lengths, size, batch_tokens, by_length=name.endswith(("-sorted", "-tokens")))
    prepared = list(_batches(work, sizes)) if ready else None
    classify = _authors(work) if name == "authors" else _static(work) if name.startswith("static") else _in_model(work)

    def run() -> RunOutput:
        batches = prepared or _batches(work, sizes)
        outputs = [(places, *classify(places, batch)) for places, batch in batches]
        order = torch.tensor([place for places, _, _ in outputs for place in places]).argsort()
        logits = torch.cat([logits for _, logits, _ in outputs]).float().cpu()[order]
        layers = [layers for _, _, layers in outputs if layers is not None]
        return logits, torch.cat(layers).cpu()[order] if layers else None

    return run


RUNS = {
    "static": "Transformers' classifier, batches in the order of the texts",
    "static-sorted": "the same, texts sorted by length",
    "static-tokens": "the same, with as many tokens per batch as `predict`",
    "static-texts": "the same, texts sorted by length, starting from texts",
    "in-model": "model(**batch), batches in the order of the texts",
    "in-model-sorted": "the same, texts sorted by length",
    "one-by-one": "model(**batch), batches of one",
    "authors": "the loop of the papers' code: one text at a time; after every layer the host compares the score",
    "predict": "adaexit_hf.predict",
    "predict-texts": "the same, starting from texts",
    "pipeline": "Transformers' pipeline with its own classifier, starting from texts",
    "pipeline-full-depth": "the same with the early-exit model at full depth",
}
SINGLE = ("one-by-one", "authors")
FROM_TEXTS = ("predict-texts", "static-texts", "pipeline", "pipeline-full-depth")
EXITS = ("in-model", "in-model-sorted", "predict", "predict-texts", *SINGLE)


def _static(work: Workload) -> Classify:
    return lambda _, batch: (work.static(**batch).logits, None)


def _static_texts(work: Workload, batch_size: int) -> Callable[[], RunOutput]:
    def run() -> RunOutput:
        rows = read_rows(cast(list[Any], work.texts), work.tokenizer, work.model.config)
        sizes = groups([len(row["input_ids"]) for row in rows], batch_size, 0, by_length=True)
        logits = [work.static(**batch).logits for _, batch in _batches(work, sizes, rows)]
        order = torch.tensor([place for places in sizes for place in places]).argsort()
        return torch.cat(logits).float().cpu()[order], None

    return run


def text_by_text(work: Workload, stock: bool) -> Callable[[int], RunOutput]:
    """Build a function that classifies one text as a server does: from the text to the logits on the host.

    Args:
        work: The model and the texts.
        stock: Whether to use the classifier without exits.
    """

    def classify(place: int) -> RunOutput:
        items = work.rows if work.texts is None else work.texts
        rows = read_rows(items[place : place + 1], work.tokenizer, work.model.config)
        ((_, batch),) = _batches(work, [[0]], rows)
        logits, layers = _static(work)([0], batch) if stock else _in_model(work)([0], batch)
        return logits.float().cpu(), None if layers is None else layers.cpu()

    return classify


def _in_model(work: Workload) -> Classify:
    def classify(_: list[int], batch: dict[str, Tensor]) -> RunOutput:
        output = cast(EarlyExitOutput, work.model(**batch))
        return cast(Tensor, output.logits), output.exit_layer

    return classify


def _batches(
    work: Workload, sizes: list[list[int]], rows: list[Row] | None = None
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    rows = work.rows if rows is None else rows
    for places in sizes:
        batch = padded_batch([rows[place] for place in places], work.model.config.encoder_config)
        yield places, {name: value.to(work.model.device, non_blocking=True) for name, value in batch.items()}


def _predict(work: Workload, from_texts: bool, batch_tokens: int) -> Callable[[], RunOutput]:
    data, tokenizer = (work.texts, work.tokenizer) if from_texts else (work.rows, None)
    options = {"batch_tokens": batch_tokens, "max_memory": work.max_memory, "progress": False}

    def run() -> RunOutput:
        output = predict(work.model, cast(list[Any], data), tokenizer, **cast(dict[str, Any], options))
        return output.logits, output.exit_layer

    return run


def _pipeline(work: Workload, stock: bool, batch_size: int) -> Callable[[], RunOutput]:
    config, texts = work.model.config, cast(list[Any], work.texts)
    model = work.stock if stock else work.model
    options = {"model": model, "tokenizer": work.tokenizer, "device": model.device, "batch_size": batch_size}
    classify = pipeline("text-classification", **options)
    inputs = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
    truncation = {"truncation": True, "max_length": max(len(row["input_ids"]) for row in work.rows)}

    def run() -> RunOutput:
        threshold, config.exit_threshold = config.exit_threshold, None  # full depth; the stock classifier ignores it
        try:
            outputs = classify(inputs, top_k=None, function_to_apply="none", **truncation)
        finally:
            config.exit_threshold = threshold
        scores = [{score["label"]: score["score"] for score in output} for output in outputs]
        names = [config.id2label[label] for label in range(config.num_labels)]
        return torch.tensor([[by_name[name] for name in names] for by_name in scores]), None

    return run


def _authors(work: Workload) -> Classify:
    """The loop of DeeBERT's authors: one text at a time; after every layer the host reads the entropy of the exit."""
    model, config = work.model, work.model.config
    heads = [module for module in model.modules() if isinstance(module, ExitHead)]
    layers = config.exit_layers
    supported = config.encoder_config.model_type in ("bert", "roberta", "xlm-roberta") and not config.exit_temperatures
    supported &= config.last_pooling == config.pooling
    if not supported or len(heads) != len(layers) or (work.plan is None and config.exit_criterion != "entropy"):
        raise ValueError(
            "run: 'authors' is the loop of DeeBERT's code; it needs a BERT or RoBERTa with one classification head "
            "per exit, exit_criterion='entropy' and no temperatures; leave it out of pairs"
        )
    head_at = dict(zip(layers, heads, strict=True))
    threshold_at = dict(zip(layers, cast(list[float], model.thresholds_in_use(None, None)), strict=True))
    encoder = cast(Any, model.encoder)

    def classify(places: list[int], batch: dict[str, Tensor]) -> RunOutput:
        (place,) = places
        hidden = encoder.embeddings(**{name: value for name, value in batch.items() if name != "attention_mask"})
        for number, layer in enumerate(encoder.encoder.layer, start=1):
            hidden = layer(hidden, None)  # a single text has no padding
            if number in head_at:
                logits = head_at[number](hidden[:, 0] if config.pooling == "first" else hidden.mean(dim=1))
                uncertainty = entropy(logits).item()
                if uncertainty < threshold_at[number] if work.plan is None else work.plan[place] <= number:
                    break
        return logits, torch.tensor([number])

    return classify
