"""Tiny models that are exported to ONNX, each once, and the texts that they answer."""

import functools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from filelock import FileLock
from helpers.tiny import build, encoder_config
from helpers.words import new_tokenizer
from torch._export import utils as export_utils
from torch.onnx._internal.exporter import _registration
from transformers import PreTrainedTokenizerFast

from adaexit_hf import ExitTrace
from adaexit_hf.evaluation.thresholds import spread_thresholds
from adaexit_hf.export import onnx
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.encoder_layers import family_of
from adaexit_hf.models.exit_criteria import counted
from adaexit_hf.models.padded_batches import read_rows
from adaexit_hf.onnx_runtime import OnnxEarlyExitClassifier
from adaexit_hf.onnx_runtime.folder import MANIFEST

# PyTorch's exporter reads the source of a thousand functions, and looks through all operators, anew for every graph:
# half of the time of a tiny one.
_registration.ONNXRegistry.from_torchlib = staticmethod(functools.cache(_registration.ONNXRegistry.from_torchlib))
export_utils._collect_all_valid_cia_ops_for_namespace = functools.cache(
    export_utils._collect_all_valid_cia_ops_for_namespace
)

FOLDER = Path(os.environ["ADAEXIT_SHARED_BY_WORKERS"])  # see conftest.py


def words(count: int, first: int = 4) -> str:
    return " ".join(f"w{4 + (first + 7 * place) % 60}" for place in range(count))


# With [CLS] and [SEP] 2, 3, ... tokens; the last one has as many as RoBERTa's tiny encoder reads, which is the fewest.
TEXTS = ["", *(words(1 + place % 9, 11 * place) for place in range(12)), words(28)]
PAIRS = [("w5", "w6"), *((words(1 + place % 4, place), words(6 - place % 5, 9 * place)) for place in range(10))]
PAIRS += [(words(14), words(12, 9))]


class Case(NamedTuple):
    """A model to export: `build(method, encoder, **config)`, and whether its tokenizer writes token types."""

    method: str
    encoder: str = "bert"
    config: dict[str, Any] = {}
    types: bool = False


def two(encoder: str) -> Any:
    return encoder_config(encoder, **{"n_layers" if encoder == "distilbert" else "num_hidden_layers": 2})


# All methods on BERT, one on every other family; all kinds of heads, criteria and labels.
CASES = {
    "deebert-bert-pair": Case(
        "deebert", config={"encoder_config": two("bert"), "exit_head": "pair", "exit_criterion": "margin"}, types=True
    ),
    "berxit-bert-learned": Case(
        "berxit", config={"encoder_config": two("bert"), "exit_criterion": "learned"}, types=True
    ),
    "pabee-bert": Case("pabee", types=True),
    "dact-bert": Case("dact-bert", config={"exit_temperatures": [0.6, 1.7, 1.2]}),
    "fastbert-bert": Case("fastbert", config={"encoder_config": two("bert")}),  # its head is "attention-block"
    "right-tool-bert-gaps": Case("right-tool", config={"exit_layers": [1, 3]}),
    "berxit-roberta-pair": Case("berxit", "roberta", {"encoder_config": two("roberta"), "exit_head": "pair"}),
    "deebert-xlm-roberta": Case(
        "deebert",
        "xlm-roberta",
        {
            "encoder_config": two("xlm-roberta"),
            "exit_criterion": "normalized_entropy",
            "exit_head": "attention-pool",
            "last_exit_head": "dense",
        },
    ),
    "pabee-albert-regression": Case(
        "pabee",
        "albert",
        {
            "encoder_config": encoder_config("albert-groups"),
            "exit_layers": [1, 2, 4],
            "num_labels": 1,
            "patience_tolerance": 0.5,
        },
        types=True,
    ),
    "berxit-distilbert-regression": Case(
        "berxit", "distilbert", {"encoder_config": two("distilbert"), "num_labels": 1}
    ),
    "deebert-electra": Case(
        "deebert",
        "electra",
        {
            "encoder_config": two("electra-projected"),
            "exit_head": "attention-pool",
            "exit_temperatures": [0.5, 2.0],
            "exit_threshold": [1.0, 0.5],
        },
        types=True,
    ),
    "fastbert-mpnet-labels": Case(
        "fastbert",
        "mpnet",
        {
            "encoder_config": two("mpnet"),
            "problem_type": "multi_label_classification",
            "exit_head": "dense",
            "exit_pooling": "mean",
        },
    ),
    "deebert-deberta-layer": Case(
        "deebert", "deberta-v2", {"encoder_config": two("deberta-v2"), "exit_criterion": "layer"}
    ),
    "right-tool-modernbert": Case("right-tool", "modernbert", {"encoder_config": two("modernbert")}),
}
WITHOUT_LIMIT = ("deebert-deberta-layer", "right-tool-modernbert")
INT8 = ("deebert-bert-pair", "pabee-bert", "dact-bert", "deebert-deberta-layer")


class Exported(NamedTuple):
    """An exported model. Its folder is everybody's: tests that change a file take `copied`."""

    model: EarlyExitForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    folder: Path
    items: list[Any]

    def run(self, precision: str = "fp32", threads: int | None = 1) -> OnnxEarlyExitClassifier:
        return OnnxEarlyExitClassifier.from_pretrained(self.folder, precision, threads=threads)

    def rows(self) -> list[dict[str, torch.Tensor]]:
        """What PyTorch reads of every item: one text at a time."""
        rows = read_rows(self.items, self.tokenizer, self.model.config)
        return [{name: torch.tensor([values]) for name, values in row.items()} for row in rows]

    @torch.no_grad()
    def labelled(self) -> list[dict[str, Any]]:
        """The items as rows with labels: what PyTorch answers at full depth, but for every fifth item."""
        config, rows = self.model.config, []
        for index, (item, row) in enumerate(zip(self.items, self.rows(), strict=True)):
            logits = self.model(**row, early_exit=False).logits[0]
            if config.num_labels == 1:
                label: Any = logits.item()
            else:
                label = (
                    (logits > 0).long().tolist()
                    if config.multi_label
                    else (int(logits.argmax()) + (index % 5 == 4)) % 3
                )
            texts = item if isinstance(item, tuple) else (item,)
            rows.append(dict(zip(("text", "text_pair"), texts, strict=False)) | {"label": label})
        return rows


def tokenizer_of(case: Case, model: EarlyExitForSequenceClassification) -> PreTrainedTokenizerFast:
    limited = family_of(model.config.encoder_config).max_tokens(model.config.encoder_config) is not None
    tokenizer = new_tokenizer(model_max_length=32 if limited else None)
    if case.types:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def export_once(name: str, model: Any, tokenizer: Any, int8: bool = False) -> Path:
    """Export a model in the first worker that asks for it; the folder is that of all."""
    folder = FOLDER / name
    with FileLock(f"{folder}.lock"):
        if not (folder / MANIFEST).exists():  # which comes last
            onnx.export_onnx(model, tokenizer, folder, int8=int8, progress=False)
    return folder


@functools.cache
def exported(name: str) -> Exported:
    """A case, exported once."""
    case = CASES[name]
    model = build(case.method, case.encoder, **case.config)
    items = PAIRS if model.config.pairs else [*TEXTS, words(70)] if name in WITHOUT_LIMIT else TEXTS
    tokenizer = tokenizer_of(case, model)
    return Exported(model, tokenizer, export_once(name, model, tokenizer, int8=name in INT8), items)


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(exported(name).folder, folder))


@contextmanager
def graphs_of(folder: Path) -> Iterator[None]:
    """Exports copy the graphs of an earlier one of the same model, instead of tracing them again."""

    def copies(model: Any, trial: Any, longest: Any, target: Path) -> Iterator[dict[str, Any]]:
        for stage in facts_of(folder)["precisions"]["fp32"]["stages"]:
            shutil.copy(folder / stage["file"], target / stage["file"])
            yield stage

    with mock.patch.object(onnx, "_export_stages", copies):
        yield


def export_again(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Export a case once more, with other arguments of `export_onnx`; only the graphs are not traced again."""
    made = exported(name)
    arguments = {"model": made.model, "tokenizer": made.tokenizer, "progress": False} | changes
    with graphs_of(made.folder):
        return onnx.export_onnx(arguments.pop("model"), arguments.pop("tokenizer"), folder, **arguments)


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "early_exit.json").read_text())


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "early_exit.json").write_text(json.dumps(facts))


def clear_thresholds(trace: ExitTrace, count: int = 5) -> list[float]:
    """Thresholds between the scores, none so near to one that rounding could decide."""
    scores = trace.scores[:, :-1].double()
    if counted(trace.criterion):
        return [1.0, 2.0]
    clear = [value for value in spread_thresholds(trace, count) if (scores - value).abs().min() > 1e-5]
    assert clear
    return clear
