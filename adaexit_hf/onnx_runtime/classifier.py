"""`OnnxEarlyExitClassifier`: run an exported model stage by stage, text by text."""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

try:
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from tokenizers import Tokenizer
except ImportError as error:
    raise ImportError(f"you need ONNX Runtime and Tokenizers ({error}); call pip install adaexit_hf[onnx]") from error

from .folder import (
    MANIFEST,
    TOKENIZER,
    ExportFolderError,
    check_hub_name,
    check_source,
    chosen_precision,
    download,
    find_folder,
    read_checked,
    read_manifest,
)

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = dict[str, Array]
Threshold: TypeAlias = float | Sequence[float] | None

READY: dict[str, Callable[[Array, Any], Any]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
# Texts that are tokenized in one call, and the largest number of tokens whose states are kept at a time.
BLOCK = 256
WINDOW_TOKENS = 2**14


class OnnxPredictions(NamedTuple):
    """The predictions for all texts, in their order; as `adaexit_hf.Predictions`, with NumPy arrays.

    Attributes:
        logits: logits of the exit that each text took, float32, shape `(texts, labels)`.
        exit_layer: number of layers that were run for each text, from 1, shape `(texts,)`.
        exit_score: readiness score at the exit that each text took, in the unit of the exit criterion, shape
            `(texts,)`.
    """

    logits: Array
    exit_layer: Array
    exit_score: Array


class OnnxTrace(NamedTuple):
    """Logits and readiness scores of every exit for every text; `save` writes a file for `ExitTrace.load`.

    Attributes:
        logits: float32, shape `(texts, exits, labels)`.
        scores: readiness scores, float32, shape `(texts, exits)`.
        labels: class indices, or numbers for regression, shape `(texts,)`; with several labels at once 0 and 1, shape
            `(texts, labels)`; None if none were passed.
        lengths: tokens of each text, shape `(texts,)`.
        facts: what else an `ExitTrace` says: exit layers, criterion, names of the labels, ...
        row_hashes: hash of the tokens of each text, int64, shape `(texts,)`, by which `adaexit_hf.overlap` finds texts
            that two traces share.
    """

    logits: Array
    scores: Array
    labels: Array | None
    lengths: Array
    facts: dict[str, Any]
    row_hashes: Array

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, which `adaexit_hf.ExitTrace.load` reads.

        Args:
            path: the file; missing folders are created, and an existing file is overwritten.

        Raises:
            ImportError: `safetensors` is not installed.
        """
        try:
            from safetensors.numpy import save_file
        except ImportError as error:
            raise ImportError("a trace is saved as safetensors; call pip install safetensors") from error
        tensors = {name: value for name, value in self._asdict().items() if name != "facts"}
        metadata = {"format": "pt", "adaexit_hf_trace": json.dumps(self.facts)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value for name, value in tensors.items() if value is not None}, path, metadata)


class OnnxEarlyExitClassifier:
    """A classifier with early exit that ONNX Runtime runs, from the folder that `adaexit export` writes.

    Each text runs alone, without padding, so that its answer does not depend on other texts, their order or the number
    of threads. All texts run the layers up to the first exit; those that are not ready run up to the next one. Exits,
    exit layers and scores are those of the PyTorch model, up to rounding, and with int8 up to quantization.

    Use `from_pretrained`.

    Args:
        folder: folder with `early_exit.json`.
        precision: as in `from_pretrained`.
        threads: as in `from_pretrained`.

    Attributes:
        folder: folder with `early_exit.json`.
        facts: the content of `early_exit.json`.
        precision: "fp32" or "int8".
        labels: names of the labels, in the order of the logits; None for regression.
        exit_layers: number of layers run at each exit.
        exit_threshold: the threshold that was chosen for this precision: one number, or one per exit; None is full
            depth.
        calibrated: whether this threshold belongs to this precision; otherwise one must be passed.
        threads: number of texts that run at a time.
        stages: one per exit, in order: the graphs of the layers up to the exit.

    Examples:
        >>> OnnxEarlyExitClassifier.from_pretrained("/no/such/folder")
        Traceback (most recent call last):
            ...
        ValueError: name_or_path: there is no folder '/no/such/folder'; pass the folder of an exported model, or a \
name on the Hub, owner/name
    """

    def __init__(self, folder: str | Path, precision: str | None = None, threads: int | None = None) -> None:
        folder = Path(folder)
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads: got {threads!r}; pass a whole number from 1, or None for all cores")
        self.folder = folder
        self.facts = read_manifest(folder)
        check_source(folder, self.facts)
        self.precision = chosen_precision(self.facts, precision)
        chosen = self.facts["precisions"][self.precision]
        self.labels: list[str] | None = self.facts["labels"]
        self.exit_layers: list[int] = self.facts["exit_layers"]
        self.exit_threshold: Threshold = chosen["exit_threshold"]
        self.threads = threads or _cores()
        self.calibrated: bool = chosen["calibrated"]
        tokenizer = read_checked(folder, TOKENIZER, self.facts["tokenizer"]["sha256"])
        self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        self.stages = [Stage(folder, stage) for stage in chosen["stages"]]
        self._pools: dict[int, ThreadPoolExecutor] = {}  # by process: a fork has none of its parent's threads

    def __repr__(self) -> str:
        threshold = self.exit_threshold if self.calibrated else "not chosen"
        return (
            f"{type(self).__name__}('{self.folder}', {self.precision}, threads={self.threads}, "
            f"exit_layers={self.exit_layers}, exit_threshold={threshold})"
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, precision: str | None = None, *, threads: int | None = None, **hub_options: Any
    ) -> "OnnxEarlyExitClassifier":
        """Load an exported model.

        Args:
            name_or_path: folder of a checkpoint with a subfolder `onnx`, that subfolder, or a name on the Hub.
            precision: "fp32" or "int8". Default: int8 if the model was exported with it, else fp32.
            threads: number of texts that run at a time, each on one core. Default: the number of cores that this
                process may use.
            **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, for a name on the Hub only.

        Returns:
            The classifier.

        Raises:
            ExportFolderError: a file is missing or was changed, or the checkpoint beside it was changed after the
                export. It is a `ValueError`.
            ValueError: there is no such folder, it has no exported model, or not with this precision; an option of the
                Hub is given with a folder; or `threads` is less than 1.
            TypeError: an unknown option.
        """
        unknown = sorted(set(hub_options) - {"revision", "token", "cache_dir", "local_files_only"})
        if unknown:
            raise TypeError(
                f"from_pretrained: unknown options {', '.join(unknown)}; it takes precision, threads, revision, "
                "token, cache_dir and local_files_only"
            )
        folder = find_folder(name_or_path)
        if folder is None:
            path = Path(name_or_path)
            if (path.parent / MANIFEST).is_file():
                raise ValueError(f"name_or_path: '{path}' is a part of an exported model; pass '{path.parent}'")
            if path.is_dir():
                raise ValueError(f"name_or_path: '{path}' has no exported model; call adaexit export {path}")
            if path.exists():
                raise ValueError(f"name_or_path: '{path}' is no folder; pass the folder of an exported model")
            check_hub_name(str(name_or_path))
            return cls(download(str(name_or_path), precision, hub_options), precision, threads)
        # Nothing is downloaded, as local_files_only asks; the values are not printed, since one may be a token.
        unused = [name for name in ("revision", "token", "cache_dir") if hub_options.get(name) is not None]
        if unused:
            raise ValueError(
                f"{', '.join(unused)}: only for a name on the Hub, and '{name_or_path}' is a local folder; leave "
                f"{'it' if len(unused) == 1 else 'them'} out"
            )
        return cls(folder, precision, threads)

    def __call__(self, texts: Any, **options: Any) -> list[dict[str, Any]]:
        """Classify texts and name the answers.

        Args:
            texts: as in `predict`.
            **options: as in `predict`.

        Returns:
            One dict per text, with `label` and `score` (its probability), and `exit_layer`; for regression only the
            number as `score`; with several labels at once `labels`, those with a probability above 0.5, and `scores`
            by label. Label and score are None where the logits are not finite.
        """
        return [self._named(*row) for row in zip(*self.predict(texts, **options)[:2], strict=True)]

    def predict(
        self, texts: Iterable[Any], exit_threshold: Threshold = None, early_exit: bool | None = None
    ) -> OnnxPredictions:
        """Classify texts with early exit.

        Args:
            texts: texts, pairs of texts, rows `{"text": ..., "text_pair": ...}`, or tokenized rows with `input_ids`.
            exit_threshold: one threshold, or one per exit. Default: `self.exit_threshold`.
            early_exit: False runs all layers. Default: exit early if there is a threshold.

        Returns:
            Logits, exit layers and readiness scores, in the order of the texts.

        Raises:
            ValueError: there are no texts, or one is not of the kind that the model was trained on; or the threshold
                is out of range; or no threshold was chosen for this precision, and none was passed.
        """
        thresholds = self.thresholds_in_use(exit_threshold, early_exit)
        parts = [self._predict_window(window, thresholds) for window in self._windows(texts)]
        return OnnxPredictions(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def predict_stream(
        self, texts: Iterable[Any], exit_threshold: Threshold = None, early_exit: bool | None = None
    ) -> Iterator[tuple[Array, int, float]]:
        """Classify texts that need not fit into memory: `predict` as an iterator.

        Args:
            texts: as in `predict`; it may be endless.
            exit_threshold: as in `predict`.
            early_exit: as in `predict`.

        Yields:
            Logits, shape `(labels,)`, exit layer and readiness score of each text, in the order of the texts.

        Raises:
            ValueError: as in `predict`.
        """
        thresholds = self.thresholds_in_use(exit_threshold, early_exit)
        for window in self._windows(texts):
            logits, exit_layer, exit_score = self._predict_window(window, thresholds)
            yield from zip(logits, exit_layer.tolist(), exit_score.tolist(), strict=True)

    def trace(self, texts: Iterable[Any], labels: Any = None, about: Mapping[str, Any] | None = None) -> OnnxTrace:
        """Run texts once at full depth, and keep logits and readiness scores of every exit.

        Args:
            texts: as in `predict`.
            labels: one class index, or number, per text; with several labels at once a list of 0 and 1. Default: none.
            about: anything else worth keeping that JSON can represent. Default: empty.

        Returns:
            The trace. With it, thresholds can be chosen for this precision.

        Raises:
            ValueError: as in `predict`; or there are more or fewer labels than texts; or one of them is no class
                index, not finite, or with several labels at once not one 0 or 1 for each.
        """
        labels = None if labels is None else self._checked_labels(labels)
        logits: list[Array] = []
        scores: list[Array] = []
        lengths: list[int] = []
        hashes: list[int] = []
        for window in self._windows(texts):
            hashes += [_row_hash(row["input_ids"]) for row in window]
            lengths += [row["input_ids"].shape[1] for row in window]
            exits = [
                (np.stack([text["logits"][0] for text in states]), np.stack([text["score"][0] for text in states]))
                for states in self._exits(window)
            ]
            logits += list(np.stack([exit for exit, _ in exits], axis=1))
            scores += list(np.stack([score for _, score in exits], axis=1))
        if labels is not None and len(labels) != len(logits):
            raise ValueError(f"labels: got {len(labels)} for {len(logits)} texts; pass one per text")
        facts = {name: self.facts[name] for name in ("exit_layers", "ready", "criterion", "bounds", "method")}
        facts |= {"label_names": self.labels, "multi_label": self.facts["multi_label"]}
        facts |= {"settings": self.facts["settings"], "about": dict(about or {}) | {"precision": self.precision}}
        return OnnxTrace(
            np.stack(logits).astype(np.float32),
            np.stack(scores).astype(np.float32),
            labels,
            np.asarray(lengths),
            facts,
            np.asarray(hashes, dtype=np.int64),
        )

    def _checked_labels(self, labels: Any) -> Array:
        """Return labels as an array: int64, or float32 for regression; what is wrong is refused as in a trace."""
        classes, several = len(self.labels or ()), self.facts["multi_label"]
        allowed = f"class indices from 0 to {classes - 1}" if classes else "finite numbers"
        allowed = f"for each text a list of {classes} numbers, 0 or 1" if several else allowed
        try:
            found = np.asarray(labels)
        except ValueError:  # lists of unequal lengths
            found = np.empty(0, dtype=object)
        wanted = (len(found), classes) if several and found.ndim else found.shape[:1]
        if found.dtype.kind not in "biuf" or found.ndim == 0 or found.shape != wanted:
            raise ValueError(f"labels: got {labels!r:.80}; pass {allowed}")
        numbers = found.astype(np.float64)
        wrong = ~np.isfinite(numbers)
        if classes:
            wrong |= (numbers < 0) | (numbers > (1 if several else classes - 1)) | (numbers != np.round(numbers))
        if wrong.any():
            text = int(np.nonzero(wrong)[0][0])
            raise ValueError(f"labels: got {found[text].tolist()} for text {text}; pass {allowed}")
        return found.astype(np.int64 if classes else np.float32)

    # From items to rows

    def _windows(self, texts: Iterable[Any]) -> Iterator[list[Tensors]]:
        """Iterate over tokenized texts, as many at a time as have at most `WINDOW_TOKENS` tokens together."""
        table = hasattr(texts, "to_pydict") or (hasattr(texts, "columns") and hasattr(texts, "to_dict"))
        if table or isinstance(texts, str | bytes | Mapping):
            raise ValueError(
                f"texts: got {type(texts).__name__}; pass a list of texts, e.g. predict([text]), or of a table "
                "predict(list(table['text']))"
            )
        truncated = told = tokens = 0
        window: list[Tensors] = []
        empty = True
        for row, too_long in self.rows(enumerate(texts)):
            empty, length = False, row["input_ids"].shape[1]
            truncated += too_long
            if window and tokens + length > WINDOW_TOKENS:
                if truncated and not told:  # now, since the stream may have no end
                    told = self._tell_of_truncated(truncated)
                yield window
                window, tokens = [], 0
            window.append(row)
            tokens += length
        if empty:
            raise ValueError("texts: got none; pass at least one")
        if truncated > told:
            self._tell_of_truncated(truncated)
        yield window

    def _tell_of_truncated(self, count: int) -> int:
        warnings.warn(
            f"{count} texts have more than {self.facts['max_tokens']} tokens, the most that this model reads; they "
            "were truncated",
            stacklevel=4,
        )
        return count

    def rows(
        self, items: Iterator[tuple[int, Any]], truncation_side: str | None = None
    ) -> Iterator[tuple[Tensors, bool]]:
        """Iterate over tokenized texts.

        Args:
            items: texts as in `predict`, each with its index.
            truncation_side: "left" or "right", the end at which texts that are too long are cut; tokenized ones are
                always cut at the right. Default: the tokenizer's.

        Yields:
            What the first stage reads of the text, and whether it was truncated.

        Raises:
            ValueError: as in `predict`.
        """
        own = self._tokenizer.truncation  # None if the model reads texts of any length
        same_side = own is None or truncation_side in (None, own["direction"])
        tokenizer = self._tokenizer if same_side else self._other_side
        while block := list(islice(items, BLOCK)):
            texts = {index: self._texts(index, item) for index, item in block if not _is_row(item)}
            encodings = dict(zip(texts, tokenizer.encode_batch(list(texts.values())), strict=True))
            for index, item in block:
                if index in encodings:
                    encoding = encodings[index]
                    columns = {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}
                    too_long = bool(encoding.overflowing)
                    self._check_ids(index, encoding.ids)
                else:
                    columns, too_long = self._checked_row(index, item)
                inputs = self.stages[0].inputs
                yield {name: np.asarray([columns[name]], dtype=np.int64) for name in inputs}, too_long

    @cached_property
    def _other_side(self) -> Any:
        """A tokenizer that cuts texts at the other end; the own one is not changed, as other threads may use it."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        own: dict[str, Any] = tokenizer.truncation or {}
        tokenizer.enable_truncation(**own | {"direction": "right" if own["direction"] == "left" else "left"})
        return tokenizer

    def _texts(self, index: int, item: Any) -> str | tuple[str, str]:
        """Return the text of an item, or its two texts.

        Raises:
            ValueError: it is something else, or not of the kind that the model was trained on.
        """
        texts = [item] if isinstance(item, str) else item
        if isinstance(item, Mapping):
            texts = [item.get("text"), *([] if item.get("text_pair") is None else [item["text_pair"]])]
        strings = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
        if not strings or len(texts) not in (1, 2):
            raise ValueError(
                f"texts: item {index} is {item!r:.80}; pass texts, pairs of texts, rows with 'text' (and "
                "'text_pair'), or tokenized rows with 'input_ids'"
            )
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise ValueError(f"texts: item {index} has half a surrogate pair, which is no character") from None
        pairs = self.facts["pairs"]
        if pairs not in (None, len(texts) == 2):
            kinds = ("a single text", "a pair of texts")
            raise ValueError(
                f"texts: item {index} is {kinds[not pairs]}, but the model was trained on "
                f"{'pairs of texts' if pairs else 'single texts'}; pass {kinds[pairs]} per item"
            )
        return texts[0] if len(texts) == 1 else (texts[0], texts[1])

    def _checked_row(self, index: int, item: Mapping[str, Any]) -> tuple[dict[str, list[int]], bool]:
        """Return the columns of a tokenized row without padding, truncated as in PyTorch: the last token stays."""
        unread = [name for name in ("position_ids", "inputs_embeds") if item.get(name) is not None]
        if unread:
            raise ValueError(f"texts: item {index} has {' and '.join(unread)}, which an exported model does not read")
        names = ("input_ids", "token_type_ids", "attention_mask")
        given = [name for name in names if name == "input_ids" or item.get(name) is not None]
        columns = {name: _whole_numbers(index, name, item[name]) for name in given}
        columns.setdefault("token_type_ids", [0] * len(columns["input_ids"]))
        if not columns["input_ids"] or len({len(values) for values in columns.values()}) > 1:
            raise ValueError(
                f"texts: item {index} has no input_ids, or more or fewer token_type_ids or values in its "
                "attention_mask; tokenize it again"
            )
        mask = columns.pop("attention_mask", None)
        if mask is not None:
            real = [place for place, value in enumerate(mask) if value]
            start, end = (real[0], real[-1] + 1) if real else (0, len(mask))
            if real and not all(mask[start:end]):
                raise ValueError(
                    f"texts: item {index} has an attention_mask with gaps, which PyTorch can run: predict"
                )
            columns = {name: values[start:end] for name, values in columns.items()}
        ids, limit = columns["input_ids"], self.facts["max_tokens"]
        self._check_ids(index, ids)
        if any(columns["token_type_ids"]) and "token_type_ids" not in self.stages[0].inputs:
            raise ValueError(
                f"texts: item {index} has token_type_ids, which this model was exported without; leave them out, or "
                "export it with a tokenizer that writes them"
            )
        too_long = limit is not None and len(ids) > limit
        if too_long:
            columns = {name: [*values[: limit - 1], values[-1]] for name, values in columns.items()}
        return columns, too_long

    def _check_ids(self, index: int, ids: Sequence[int]) -> None:
        """Check that token ids are in the vocabulary."""
        vocabulary = self.facts["vocab_size"]
        if not ids:
            raise ValueError(f"texts: item {index} has no tokens; remove it")
        if min(ids) < 0 or max(ids) >= vocabulary:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(
                f"texts: item {index} has the token id {wrong}, but the vocabulary has the ids 0 to {vocabulary - 1}; "
                "use the tokenizer of the checkpoint"
            )

    # Running the stages

    def thresholds_in_use(self, exit_threshold: Threshold, early_exit: bool | None) -> list[float] | None:
        """Return the thresholds that `predict` uses for these arguments.

        Args:
            exit_threshold: as in `predict`.
            early_exit: as in `predict`.

        Returns:
            One threshold per exit, or None for full depth.

        Raises:
            ValueError: as in `predict`.
        """
        if early_exit is False:
            if exit_threshold is not None:
                raise ValueError(
                    f"exit_threshold: got {exit_threshold} with early_exit=False, where all layers run; leave out one"
                )
            return None
        if exit_threshold is None and not self.calibrated:
            raise ValueError(
                f"exit_threshold: none was chosen for {self.precision}, whose scores differ from those of the model "
                "that was exported; export with labelled texts (--validation_file), or pass exit_threshold=<number>, "
                "or early_exit=False for full depth"
            )
        chosen = self.exit_threshold if exit_threshold is None else exit_threshold
        chosen = chosen.tolist() if isinstance(chosen, np.ndarray | np.generic) else chosen
        whole, exits = self.facts["whole_thresholds"], len(self.exit_layers)
        # A patience of 0 is full depth, as in PyTorch.
        zero = isinstance(chosen, int | float) and not isinstance(chosen, bool) and chosen == 0
        if chosen is None or (zero and self.facts["criterion"] == "patience"):
            if early_exit:
                raise ValueError("early_exit: got True, which needs a threshold; pass exit_threshold=<number>")
            return None
        thresholds: list[Any] = list(chosen) if isinstance(chosen, list | tuple) else [chosen] * exits
        if len(thresholds) != exits:
            raise ValueError(
                f"exit_threshold: got {len(thresholds)} numbers for {exits} exits; pass one number, or one per exit"
            )
        low, high = self.facts["bounds"]
        for value in thresholds:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high or (whole and value != int(value)):
                raise ValueError(
                    f"exit_threshold: got {value!r}; {self.facts['criterion']} takes {'whole ' * whole}numbers from "
                    f"{low:.4g} to {high:.4g}, or None"
                )
        return [float(value) for value in thresholds]

    def _predict_window(self, window: list[Tensors], thresholds: list[float] | None) -> tuple[Array, Array, Array]:
        ready, not_finite = READY[self.facts["ready"]], 0
        answers: list[tuple[Array, int, Array]] = [(np.empty(0), 0, np.empty(0))] * len(window)
        remaining = list(range(len(window)))
        for index, states in enumerate(self._exits(window, remaining)):
            last = index == len(self.exit_layers) - 1
            if last or thresholds:
                # The score is NaN where the logits are not finite, and NaN is never ready.
                not_finite += sum(math.isnan(states[text]["score"][0]) for text in remaining)
            left = {
                text
                for text in remaining
                if last or (thresholds and ready(states[text]["score"][0], np.float32(thresholds[index])))
            }
            for text in left:
                answers[text] = (states[text]["logits"][0], self.exit_layers[index], states[text]["score"][0])
                states[text].clear()
            remaining[:] = [text for text in remaining if text not in left]
        logits, layers, scores = zip(*answers, strict=True)
        if not_finite:
            warnings.warn(
                f"{not_finite} exits gave NaN or infinite logits; their texts went on to the next exit. Check the "
                "model",
                RuntimeWarning,
                stacklevel=3,
            )
        return np.stack(logits).astype(np.float32), np.asarray(layers), np.asarray(scores, dtype=np.float32)

    def _exits(self, window: list[Tensors], remaining: list[int] | None = None) -> Iterator[list[Tensors]]:
        """Run one stage after the other, and return what is known of every text after each of them.

        Args:
            window: what the first stage reads of every text.
            remaining: indices of the texts that still run; the caller removes those that have left. Default: all.
        """
        states = [dict(row) for row in window]
        remaining = list(range(len(window))) if remaining is None else remaining
        for stage in self.stages:
            if not remaining:
                return
            self._run(stage, states, remaining)
            yield states

    def _run(self, stage: "Stage", states: list[Tensors], texts: Sequence[int]) -> None:
        todo = iter(texts)  # shared by the threads: Python advances an iterator over a list in one step

        def work(_: int = 0) -> None:
            for text in todo:
                states[text] |= stage.run(states[text])

        if self.threads == 1 or len(texts) == 1:
            work()
            return
        process = os.getpid()
        if process not in self._pools:
            self._pools = {process: ThreadPoolExecutor(self.threads, "adaexit-onnx")}
        list(self._pools[process].map(work, range(min(self.threads, len(texts)))))

    def _named(self, logits: Array, exit_layer: Any) -> dict[str, Any]:
        layer = {"exit_layer": int(exit_layer)}
        finite = bool(np.isfinite(logits).all())
        if self.labels is None:
            return {"score": float(logits[0]) if finite else None} | layer
        wide = logits.astype(np.float64)
        if self.facts["multi_label"]:
            probabilities = 0.5 * (1 + np.tanh(wide / 2))
            chosen = [name for name, logit in zip(self.labels, logits, strict=True) if logit > 0]
            scores = dict(zip(self.labels, probabilities.tolist(), strict=True))
            return {"labels": chosen if finite else None, "scores": scores if finite else None} | layer
        if not finite:
            return {"label": None, "score": None} | layer
        best = int(wide.argmax())
        score = 1 / math.fsum(np.exp(wide - wide[best]).tolist())
        return {"label": self.labels[best], "score": score} | layer


class Stage:
    """The graph of the layers up to an exit, and the exit.

    Args:
        folder: folder with the exported model.
        facts: the stage's entry in the manifest.

    Attributes:
        inputs: names of the tensors that it reads.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.inputs: list[str] = facts["inputs"]
        self.outputs: list[str] = facts["outputs"]
        options = SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        data = read_checked(folder, facts["file"], facts["sha256"])
        try:
            self.session = InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportFolderError(
                f"'{folder / facts['file']}' cannot be run by this version of ONNX Runtime ({error}); update it: "
                "pip install -U onnxruntime"
            ) from error

    def run(self, tensors: Tensors) -> Tensors:
        """Run the stage for one text; the tensors that the next stage reads have the same names as in this one.

        Args:
            tensors: what the stages before it have returned, by name; others than `inputs` are ignored.

        Returns:
            The tensors for the next stage, and `logits`, shape `(1, labels)`, and `score`, shape `(1,)`, of the exit.
        """
        values = self.session.run(None, {name: tensors[name] for name in self.inputs})
        return dict(zip(self.outputs, values, strict=True))


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _whole_numbers(index: int, name: str, values: Any) -> list[int]:
    """Return a column of a tokenized row as a list; an array or a tensor becomes one."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | np.integer) for value in values):
        raise ValueError(
            f"texts: item {index} has the {name} {values!r:.60}; pass a flat list of whole numbers, and a single row "
            "as a list, [row]"
        )
    return [int(value) for value in values]


def _is_row(item: Any) -> bool:
    return isinstance(item, Mapping) and "input_ids" in item


def _row_hash(tokens: Array) -> int:
    """Hash token ids as `collect_trace` does: the first 8 bytes of BLAKE2b of little-endian 64-bit integers."""
    digest = hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
