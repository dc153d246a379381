"""Export a model to ONNX stage by stage: one graph with the layers up to each exit, and the exit.

A graph cannot let a text leave in the middle, but the program that runs it can stop between two graphs. A stage is
traced for one text without padding: without a mask, ONNX Runtime runs its layers as fast as graphs that were optimized
by hand; and dynamic int8 quantization takes its scale from all texts of a batch, so that in a batch the exits would
depend on the neighbours.
"""

import ast
import copy
import json
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..evaluation.collect import onnx_trace
from ..evaluation.cross_fit import NoHalvesError, cross_fitted
from ..evaluation.metrics import check_classes, task_metrics
from ..evaluation.summary import label_names, results_at_threshold, score_settings
from ..evaluation.thresholds import best_point, check_max_drop
from ..evaluation.trace import ExitTrace, comparison_of, predictions
from ..evaluation.tradeoff import tradeoff_curve
from ..models.early_exit_loop import InFlight, read_exit
from ..models.encoder_layers import family_of
from ..models.exit_criteria import counted
from ..models.padded_batches import check_model, full_depth, label_column, progress_bar, stream_rows
from ..onnx_runtime.folder import FORMAT_VERSION, MANIFEST, PRECISIONS, SUBFOLDER, TOKENIZER, sha256, source_files
from ..utils.files import check_writable, without_nan
from ..utils.imports import needed
from ..version import __version__

# Version of ONNX's operators: ONNX Runtime 1.17 and newer run it.
OPSET = 20
# Largest difference, to logits and scores of PyTorch, that an exported model may have on the trial texts.
TOLERANCE = 1e-3
# Numbers in a matrix of an exit from which on it is quantized, too: those of an attention pool read as many bytes in
# float32 as a quantized layer, and made a stage of MiniLM a tenth slower.
LARGE = 2**15
# End of the key under which the exporter notes in which modules a node was traced.
SCOPES = "name_scopes"


def check_installed() -> None:
    """Check, before anything slow, that all packages of the extra `onnx` are installed.

    Raises:
        ImportError: one of them is not.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        needed(module, "onnx")


def export_onnx(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    *,
    int8: bool = False,
    validation: Iterable[Any] | None = None,
    metrics: tuple[str, ...] | None = None,
    max_drop: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Export a model to ONNX, for `OnnxEarlyExitClassifier`.

    The model is checked on trial texts against PyTorch. The fp32 graphs keep the model's exit threshold. Quantization
    changes the readiness scores, so that the threshold for int8 is chosen anew, by running the quantized model on
    `validation`.

    Args:
        model: an early-exit model of any method but Depth-Adaptive, on any device and in any dtype; the graphs
            compute in float32.
        tokenizer: its tokenizer, a fast one.
        folder: a new folder, or one with an earlier export, which is replaced; it then holds all that is needed to run
            the model. If it is the subfolder `onnx` of the model's checkpoint, the export is refused as outdated once
            the checkpoint has changed.
        int8: whether to export int8 graphs, too. Weights of linear layers, but of none whose outputs are logits, are
            quantized per channel to 7 bits, which no CPU saturates; embeddings to 8 bits; activations at run time.
        validation: texts or tokenized rows with labels, none used in training, as for `collect_trace`. Default: None;
            then the int8 model has no threshold.
        metrics: names of the metrics to report; the threshold is chosen by the first. Default: those of the kind of
            labels, accuracy for classes.
        max_drop: as in `choose_threshold`.
        progress: whether to show a progress bar.

    Returns:
        The content of `early_exit.json`. The `results` of int8 on `validation` say as `same_as_fp32` on which share of
        the texts it gives the class (or the labels) of fp32: at full depth, with exits, and at every exit.

    Raises:
        ImportError: the extra `onnx` is not installed.
        TypeError: the model has no exits.
        ValueError: the model's tokens skip layers; the tokenizer is a slow one, or does more than its tokenizer.json
            says; `folder` cannot be written, holds other files, or is the subfolder of another checkpoint;
            `validation` has no labels; or an argument is given without the one that it belongs to.
        RuntimeError: a graph gives other results than PyTorch.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertConfig, BertTokenizer
        >>> from adaexit_hf import BerxitConfig, BerxitForSequenceClassification, OnnxEarlyExitClassifier
        >>> tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "film": 5})
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> model = BerxitForSequenceClassification(BerxitConfig(encoder, num_labels=2, exit_threshold=0.1)).eval()
        >>> with TemporaryDirectory() as folder:
        ...     facts = export_onnx(model, tokenizer, f"{folder}/onnx", progress=False)
        ...     answers = OnnxEarlyExitClassifier.from_pretrained(folder).predict(["good film", "film"])
        >>> [stage["outputs"] for stage in facts["precisions"]["fp32"]["stages"]]
        [['logits', 'score', 'hidden'], ['logits', 'score']]
        >>> answers.exit_layer.tolist()
        [1, 1]
    """
    check_model(model)
    check_max_drop(max_drop)
    config, folder = model.config, Path(folder).absolute()
    if model.spares_tokens:
        raise ValueError(
            f"model: '{config.model_type}' decides for every token how many layers to run, which graphs of whole "
            "layers cannot do; every other method can be exported, e.g. berxit"
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} is a slow tokenizer, which runs only in Transformers; load a fast "
            "one: AutoTokenizer.from_pretrained(...)"
        )
    ready = comparison_of(model)
    check_installed()
    _check_folder(folder)
    if validation is None and metrics is not None:
        raise ValueError(f"metrics: got {metrics} without validation, on which they are measured; leave it out")
    if max_drop != 0.01 and (validation is None or not int8):
        raise ValueError(
            f"max_drop: got {max_drop:g}, but only a threshold for int8 is chosen here, on validation; leave it out"
        )
    names = metrics or task_metrics(config.num_labels, config.multi_label)
    for name in names:
        check_classes(name, config.num_labels, config.multi_label)
    rows = None if validation is None else list(stream_rows(validation, tokenizer, config))
    if rows is not None and label_column(rows) is None:
        raise ValueError("validation: has no column 'label' or 'labels', by which a threshold could be chosen")
    source = _source(model, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Names that start with "_" are never uploaded.
    part = Path(tempfile.mkdtemp(prefix=f"_{folder.name}-", dir=folder.parent))
    (part / "fp32").mkdir()
    try:
        traced = _traceable(model)
        longest = _longest(model, tokenizer)
        trials = _trial_rows(model, tokenizer, longest)
        exported = _export_stages(traced, trials[0], longest, part)
        bar = progress_bar(exported, total=len(config.exit_layers), desc="Exporting stages", disable=not progress)
        stages = {"fp32": list(bar)}
        if int8:
            (part / "int8").mkdir()
            stages["int8"] = [_quantized(part, stage) for stage in stages["fp32"]]
        stages = {name: [_without_paths(part, stage) for stage in found] for name, found in stages.items()}
        own_tokenizer = _tokenizer_text(tokenizer, longest, config.pairs)
        (part / TOKENIZER).write_text(own_tokenizer, encoding="utf-8")
        packages = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
        manifest = {
            "format_version": FORMAT_VERSION,
            "versions": {"adaexit_hf": __version__} | {package: version(package) for package in packages},
            "method": config.model_type,
            "encoder": config.encoder_config.model_type,
            "exit_layers": list(config.exit_layers),
            "criterion": config.exit_criterion,
            "ready": ready,
            "bounds": list(config.threshold_bounds),
            "whole_thresholds": bool(counted(config.exit_criterion)),
            "settings": score_settings(config),
            "labels": label_names(config),
            "multi_label": config.multi_label,
            "pairs": config.pairs,
            "max_tokens": longest,
            "vocab_size": config.encoder_config.vocab_size,
            "pad_token_id": config.encoder_config.pad_token_id,
            "source": source,
            "tokenizer": {"file": TOKENIZER, "sha256": sha256(own_tokenizer.encode())},
            "precisions": {
                name: {
                    "exit_threshold": config.exit_threshold if name == "fp32" else None,
                    "calibrated": name == "fp32",
                    "stages": found,
                }
                for name, found in stages.items()
            },
        }
        _write_manifest(part, manifest)
        _compare_with_pytorch(traced, part, trials)
        if rows is not None:
            _measure(config, part, manifest, rows, names, max_drop)
            _write_manifest(part, manifest)
        _replace_entries(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def export_stock(stock: Any, folder: Path, inputs: list[str], longest: int | None) -> dict[str, Path]:
    """Export Transformers' own classifier at full depth as one graph, in fp32 and in int8, to compare speeds with it.

    Args:
        stock: the classifier, on any device and in any dtype; the graphs compute in float32.
        folder: existing folder, to which the graphs are written.
        inputs: what a graph reads: `input_ids`, and `token_type_ids` if the exported stages read them.
        longest: the largest number of tokens of a text, None for no limit.

    Returns:
        The files: "fp32" and "int8" for single texts without padding; "fp32-batches" and "int8-batches" for texts with
        an `attention_mask`.

    Raises:
        ImportError: the extra `onnx` is not installed.
    """
    check_installed()
    files: dict[str, Path] = {}
    batch, tokens = (
        torch.export.Dim("batch", min=1, max=2**16),
        torch.export.Dim("tokens", min=2, max=longest or 2**20),
    )
    for kind, rows in (("", 1), ("-batches", 2)):
        traced = copy.deepcopy(stock).float().cpu().eval()
        traced.set_attn_implementation("eager")  # its graph has the fewest operators for the mask
        values = {name: torch.zeros(rows, 9, dtype=torch.long) for name in inputs}
        values["input_ids"] += traced.config.vocab_size - 1
        if rows > 1:
            values["attention_mask"] = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
        shapes = tuple({0: batch, 1: tokens} if rows > 1 else {1: tokens} for _ in values)
        files |= {precision + kind: folder / f"{precision}{kind}.onnx" for precision in ("fp32", "int8")}
        _save_graph(_Named(traced, list(values)), values, shapes, ["logits"], files["fp32" + kind])
        _quantize(files["fp32" + kind], files["int8" + kind], f"model.{traced.base_model_prefix}")
    return files


class _Named(nn.Module):
    """A classifier that takes the inputs of these names in order."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits


class _Stage(nn.Module):
    """The layers after one exit up to the next one, and that exit, for one text without padding.

    Args:
        model: the model.
        first: number of the first layer, from 1.
        last: number of the last layer, after which there is an exit.
        names: names of the inputs: `input_ids` and perhaps `token_type_ids` for the first stage; for the others
            `hidden`, and `state_0`, `memory_0`, `token_...`, `row_...` as the stages before return them.
    """

    def __init__(self, model: Any, first: int, last: int, names: list[str]) -> None:
        super().__init__()
        self.model, self.first, self.last, self.names = model, first, last, names
        self.outputs: list[str] = []  # known once it has run

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return logits, readiness score, and unless it is the last stage what the next one reads."""
        given = dict(zip(self.names, tensors, strict=True))
        family, encoder = family_of(self.model.encoder.config), self.model.encoder
        if self.first == 1:
            names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
            flight = InFlight.of(*self.model.embed({name: given.get(name) for name in names}))
        else:
            context = family.context(encoder, given["hidden"], None, None)
            context = context._replace(per_token=_named(given, "token_"), per_row=_named(given, "row_"))
            state, memory = (tuple(_named(given, prefix).values()) for prefix in ("state_", "memory_"))
            flight = InFlight.of(given["hidden"], context)._replace(state=state, memory=memory)
        layers = family.layers(encoder)
        for number in range(self.first, self.last + 1):
            hidden, _, context = self.model.layer_step(
                number - 1, layers[number - 1], flight.hidden, flight.context, False
            )
            step = read_exit(
                self.model,
                number,
                flight._replace(hidden=hidden, context=context),
                self.model.config.exit_temperatures,
            )
            flight = step.flight
        assert step.exit is not None and step.score is not None
        outputs = {"logits": step.exit.logits, "score": step.score}
        if self.last < self.model.config.exit_layers[-1]:
            outputs["hidden"] = flight.hidden
            if self.first == 1:  # the same for all layers
                outputs |= {f"token_{name}": value for name, value in flight.context.per_token.items()}
                outputs |= {f"row_{name}": value for name, value in flight.context.per_row.items()}
            outputs |= {f"state_{index}": value for index, value in enumerate(flight.state)}
            outputs |= {f"memory_{index}": value for index, value in enumerate(flight.memory)}
        self.outputs = list(outputs)
        return tuple(outputs.values())


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with a prefix, without it.

    >>> _named({"state_0": 1, "state_1": 2, "hidden": 3}, "state_")
    {'0': 1, '1': 2}
    """
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _traceable(model: Any) -> Any:
    """Return a copy of a model that can be traced: float32, on the CPU, with attention that has a graph."""
    traced = copy.deepcopy(model).float().cpu().eval()
    if traced.encoder.config._attn_implementation not in ("eager", "sdpa"):
        traced.set_attn_implementation("eager")
    return traced


def _longest(model: Any, tokenizer: Any) -> int | None:
    """Return the largest number of tokens of a text, None for no limit; a tokenizer without limit has a huge one."""
    limits = (
        family_of(model.config.encoder_config).max_tokens(model.config.encoder_config),
        tokenizer.model_max_length,
    )
    return min((int(limit) for limit in limits if limit is not None and limit < 2**31), default=None)


def _trial_rows(model: Any, tokenizer: Any, longest: int | None) -> list[dict[str, Any]]:
    """Return tokenized trial texts of several lengths: the first one to trace with, all to compare with PyTorch."""
    options: dict[str, Any] = {"truncation": True, "max_length": min(longest or 512, 512)}
    encoded = [tokenizer(*texts, **options) for texts in _trial_texts(model.config.pairs)]
    return [{name: list(row[name]) for name in ("input_ids", "token_type_ids") if name in row} for row in encoded]


def _trial_texts(pairs: bool | None) -> list[tuple[str, ...]]:
    """Return a text, or a pair, of usual length, a short one and one that is longer than most models read."""
    words = ["the film is good", "a", " ".join(["one film is not like the other"] * 200)]
    return [(words[0], "it is a good one"), ("a", "b"), (words[2], words[2])] if pairs else [(text,) for text in words]


def _export_stages(model: Any, trial: dict[str, Any], longest: int | None, folder: Path) -> Iterator[dict[str, Any]]:
    """Export every stage as `fp32/stage_01.onnx`, ..., and return its entry in the manifest, without the hash."""
    takes_types = family_of(model.encoder.config).takes_token_types and "token_type_ids" in trial
    names = ["input_ids", *["token_type_ids"] * takes_types]
    values = {name: torch.tensor([trial[name]]) for name in names}
    tokens = torch.export.Dim("tokens", min=2, max=longest or 2**20)
    first = 1
    for index, last in enumerate(model.config.exit_layers, start=1):
        names = names if first == 1 else [name for name in values if name not in ("logits", "score")]
        stage = _Stage(model, first, last, names).eval()
        inputs = tuple(values[name] for name in names)
        per_token = ("input_ids", "token_type_ids", "hidden")
        shapes = tuple({1: tokens} if name in per_token or name.startswith("token_") else {} for name in names)
        with torch.no_grad(), _quiet():
            tensors = stage(*inputs)
        results = dict(zip(stage.outputs, tensors, strict=True))
        file = f"fp32/stage_{index:02}.onnx"
        # A graph cannot have an input and an output of the same name.
        _save_graph(
            stage, dict(zip(names, inputs, strict=True)), shapes, [f"next_{name}" for name in results], folder / file
        )
        yield {"file": file, "inputs": names, "outputs": list(results)}
        carried = {name: value for name, value in values.items() if name.startswith(("token_", "row_"))}
        values = {name: value for name, value in (carried | results).items() if name != "token_type_ids"}
        first = last + 1


def _save_graph(
    module: nn.Module, inputs: dict[str, Tensor], shapes: tuple[dict[int, Any], ...], outputs: list[str], path: Path
) -> None:
    """Trace a module that takes its inputs in order, and save its graph, which has names for inputs and outputs."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"tensors": shapes},
            input_names=list(inputs),
            output_names=outputs,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


def _without_paths(folder: Path, stage: dict[str, Any]) -> dict[str, Any]:
    """Remove what the exporter notes of its source, with paths of this machine, and add the hash of the file."""
    onnx = needed("onnx", "onnx")
    model = onnx.load(folder / stage["file"])
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        kept = [entry for entry in noted.metadata_props if entry.key.endswith(SCOPES)]
        del noted.metadata_props[:]
        noted.metadata_props.extend(kept)
        noted.ClearField("doc_string")
    onnx.save(model, folder / stage["file"])
    return stage | {"sha256": sha256((folder / stage["file"]).read_bytes())}


def _quantized(folder: Path, stage: dict[str, Any]) -> dict[str, Any]:
    """Quantize a stage, and return its entry in the manifest, without the hash."""
    file = stage["file"].replace("fp32", "int8")
    _quantize(folder / stage["file"], folder / file, "model.encoder")
    return stage | {"file": file}


def _quantize(source: Path, target: Path, scope: str) -> None:
    """Quantize the encoder's part of a graph, and large layers of exits, but no layer whose outputs are logits.

    Args:
        source: file of the graph.
        target: file to write.
        scope: module of the encoder, e.g. "model.encoder".
    """
    onnx = needed("onnx", "onnx")
    quantization = needed("onnxruntime.quantization", "onnx")
    graph = onnx.load(source).graph
    # ONNX Runtime has scales per channel only for matrices; DeBERTa's positions are one matrix per attention head.
    stacked = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 2}
    large = {tensor.name for tensor in graph.initializer if math.prod(tensor.dims) >= LARGE}
    nodes = [
        node.name
        for node in graph.node
        if stacked.isdisjoint(node.input)
        and (_is_within(node, scope) or not (large.isdisjoint(node.input) or _is_within(node, "", ".classifier")))
    ]
    if not nodes:  # which would quantize all nodes, those of logits, too
        raise RuntimeError(f"export: no node of '{source.name}' names its module; use the versions in constraints.txt")
    with _quiet():
        quantization.quantize_dynamic(
            source,
            target,
            per_channel=True,
            reduce_range=True,  # 8 bits saturate on CPUs without VNNI, where the scores would be others
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gather"],
            # A matrix product with a bias, Gemm, is first replaced by one without.
            nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def _is_within(node: Any, start: str, end: str = "") -> bool:
    """Return whether a node of a graph was traced within a module whose name starts and ends like this."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key.endswith(SCOPES)), "[]")
    return any(scope.startswith(start) and scope.endswith(end) for scope in ast.literal_eval(scopes) if scope)


def _tokenizer_text(tokenizer: Any, longest: int | None, pairs: bool | None) -> str:
    """Return `tokenizer.json` of a tokenizer that truncates to the model's length, and does not pad.

    Raises:
        ValueError: it gives other tokens than `tokenizer` in Transformers.
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    if longest is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(longest, strategy="longest_first", direction=tokenizer.truncation_side)
    options = {} if longest is None else {"truncation": True, "max_length": longest}
    for texts in _trial_texts(pairs):
        if backend.encode(*texts).ids != list(tokenizer(*texts, verbose=False, **options)["input_ids"]):
            raise ValueError(
                f"tokenizer: {type(tokenizer).__name__} does more than its tokenizer.json says: it gives other tokens "
                f"for {texts[0]!r:.40}; export with one that does not, PreTrainedTokenizerFast"
            )
    return str(backend.to_str(pretty=False))


def _source(model: Any, folder: Path) -> dict[str, str]:
    """Return the hashes of the checkpoint beside the folder to write; empty if it is not inside of one.

    Raises:
        ValueError: the checkpoint is not the model.
    """
    checkpoint = folder.absolute().parent
    source = source_files(checkpoint) if folder.name == SUBFOLDER else {}
    if not source:
        return {}
    other = (
        f"folder: '{checkpoint}' holds another model; pass another folder, or call model.save_pretrained(...) first"
    )
    saved = json.loads((checkpoint / "config.json").read_text())
    config = model.config
    own = json.loads(config.to_json_string(use_diff=False))
    names = {*config.own_arguments(), "model_type", "id2label", "problem_type"} - {"encoder_config"}
    # What all configs have says how a model was loaded and what it returns, not what its layers compute.
    of_encoder = {*own["encoder_config"]} - {*PreTrainedConfig().to_dict()} | {"model_type"}
    for part, compared in (("", names & set(own)), ("encoder_config", of_encoder)):
        there, here = (values.get(part, {}) if part else values for values in (saved, own))
        for name in sorted(compared):
            if there.get(name, here[name]) != here[name]:
                field = f"{part}.{name}".lstrip(".")
                raise ValueError(f"{other} ({field} is {there[name]} there, and {here[name]} in the model)")
    weights = model.state_dict()
    for name in source:
        if not name.endswith(".safetensors"):
            continue
        with safe_open(checkpoint / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                if key not in weights or not torch.equal(tensor, weights[key].cpu().to(tensor.dtype)):
                    raise ValueError(f"{other} (its weight '{key}' differs)")
    return source


def _compare_with_pytorch(model: Any, folder: Path, rows: list[dict[str, Any]]) -> None:
    """Check that the fp32 graphs give the logits and scores of PyTorch, and that the int8 graphs run.

    Raises:
        RuntimeError: they do not.
    """
    from ..onnx_runtime.classifier import OnnxEarlyExitClassifier  # needs the extra

    exported = OnnxEarlyExitClassifier(folder, "fp32", threads=1)
    if "int8" in exported.facts["precisions"]:  # whose numbers differ, but which must run
        OnnxEarlyExitClassifier(folder, "int8", threads=1).trace(rows)
    trace = exported.trace(rows)
    logits, scores = full_depth(model, rows, batch_size=1)
    for name, found, expected in (
        ("logits", trace.logits, logits.numpy()),
        ("scores", trace.scores, scores.numpy()),
    ):
        # Infinite or NaN in both is no difference: a text never leaves at such an exit.
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        difference = float(np.abs(np.subtract(found, expected, where=~same, out=np.zeros_like(found))).max())
        largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=1.0))
        if not difference <= TOLERANCE * largest:
            raise RuntimeError(
                f"export: the {name} of the exported model differ from those of PyTorch by {difference:.3g}; report "
                f"this with the versions of torch {torch.__version__} and onnxruntime {version('onnxruntime')}"
            )


def _measure(
    config: Any,
    folder: Path,
    manifest: dict[str, Any],
    rows: list[dict[str, Any]],
    names: tuple[str, ...],
    max_drop: float,
) -> None:
    """Measure every precision on labelled rows, and choose the threshold of int8; the results go to the manifest."""
    from ..onnx_runtime.classifier import OnnxEarlyExitClassifier  # needs the extra

    own: ExitTrace | None = None
    for precision, entry in manifest["precisions"].items():
        trace = onnx_trace(OnnxEarlyExitClassifier(folder, precision), rows, None, config)
        threshold, honest = entry["exit_threshold"], None
        if precision != "fp32":
            threshold = best_point(tradeoff_curve(trace, names[0]), max_drop).threshold
            entry |= {"exit_threshold": threshold, "calibrated": True, "max_drop": max_drop}
            try:
                honest = cross_fitted(trace, names, max_drop)
            except NoHalvesError as error:
                warnings.warn(
                    f"validation: the scores of {precision} are those on the rows that chose its threshold, which are "
                    f"better than on other rows: {error}",
                    stacklevel=3,
                )
        entry["results"] = without_nan(results_at_threshold(trace, names, threshold, honest=honest))
        if own is not None and config.num_labels > 1:
            own_threshold = manifest["precisions"]["fp32"]["exit_threshold"]
            entry["results"]["same_as_fp32"] = _agreement(trace, threshold, own, own_threshold)
        own = trace if precision == "fp32" else own


def _agreement(trace: ExitTrace, threshold: Any, other: ExitTrace, other_threshold: Any) -> dict[str, Any]:
    """Return on which share of the texts two traces give the same class, or the same labels.

    Args:
        trace: Trace.
        threshold: Its threshold.
        other: Another trace of the same texts.
        other_threshold: The threshold of that one.

    Returns:
        The shares of the answers at full depth, at the thresholds, and of every exit.
    """

    def share(logits: Tensor, others: Tensor) -> float:
        same = predictions(logits, trace.multi_label) == predictions(others, trace.multi_label)
        return same.reshape(len(same), -1).all(dim=1).double().mean().item()

    exits = [share(trace.logits[:, index], other.logits[:, index]) for index in range(len(trace.exit_layers))]
    return {
        "full_depth": exits[-1],
        "at_threshold": share(trace.at(threshold)[0], other.at(other_threshold)[0]),
        "by_exit": {str(layer): same for layer, same in zip(trace.exit_layers, exits, strict=True)},
    }


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _check_folder(folder: Path) -> None:
    """Check that a folder is new, empty or holds an exported model, since what it holds is replaced.

    Raises:
        ValueError: it holds something else, or cannot be written.
    """
    if (folder / "config.json").exists():
        raise ValueError(f"folder: '{folder}' holds a checkpoint; pass another folder, e.g. {folder / SUBFOLDER}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / MANIFEST).exists():
        raise ValueError(f"folder: '{folder}' holds other files; pass a new folder, or one with an exported model")
    check_writable("folder", folder)


def _replace_entries(new: Path, folder: Path) -> None:
    """Move a finished export to its folder, in the place of an earlier one; other files there stay.

    The manifest goes first and comes last: an export that is stopped in between counts as none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in PRECISIONS:
        shutil.rmtree(folder / name, ignore_errors=True)
        if (new / name).exists():
            os.replace(new / name, folder / name)
    for name in (TOKENIZER, MANIFEST):
        os.replace(new / name, folder / name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the reports that PyTorch's exporter and the quantizer print and log, none of which is for the user."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "root")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
