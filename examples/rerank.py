"""Rank passages by their relevance to a query with an early-exit cross-encoder.

    python examples/rerank.py --model_name_or_path out --query "Who wrote Hamlet?" --passages passages.txt

`out` is an early-exit regression model (one label), e.g. for STS-B, from `run_glue_exit.py --method berxit --task_name
stsb`. The file has one passage per line; `-` reads from standard input. The script prints score, layers run and
passage, with the best passage first. After `import adaexit_hf`, `sentence_transformers.CrossEncoder("out")` also exits
early and gives the same order; its scores are the same with `activation_fn=torch.nn.Identity()`, while its default
applies a sigmoid.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adaexit_hf import predict


class Ranked(NamedTuple):
    """A passage, its score, and the number of layers run for it."""

    score: float
    exit_layer: int
    passage: str


def rank(model: Any, tokenizer: Any, query: str, passages: Sequence[str], **settings: Any) -> list[Ranked]:
    """The passages, best first; `settings` are keyword arguments of `predict`."""
    if model.config.num_labels != 1:
        raise ValueError(f"model: has {model.config.num_labels} labels; pass a regression model, with num_labels=1")
    output = predict(model, [(query, passage) for passage in passages], tokenizer, **settings)
    scores, layers = output.logits[:, 0].tolist(), output.exit_layer.tolist()
    return sorted(map(Ranked, scores, layers, passages), key=lambda result: result.score, reverse=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="Hub name or folder of an early-exit model")
    parser.add_argument("--query", required=True, help="text to rank the passages by")
    parser.add_argument("--passages", required=True, help="file with one passage per line, or - for standard input")
    parser.add_argument("--exit_threshold", type=float, help="default: that of the checkpoint")
    parser.add_argument("--top_k", type=int, help="number of passages to print; default: all")
    options = parser.parse_args(argv)
    text = sys.stdin.read() if options.passages == "-" else Path(options.passages).read_text(encoding="utf-8")
    passages = [line for line in text.splitlines() if line.strip()]
    if not passages:
        raise ValueError(
            f"passages: '{options.passages}' has no lines with text; pass a file with one passage per line"
        )
    model = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    ranked = rank(model, tokenizer, options.query, passages, exit_threshold=options.exit_threshold)
    for result in ranked[: options.top_k]:
        print(f"{result.score:8.3f}  layer {result.exit_layer:2d}  {result.passage}")
    mean, depth = sum(result.exit_layer for result in ranked) / len(ranked), model.config.exit_layers[-1]
    print(f"{mean:.2f} of {depth} layers per passage, {1 - mean / depth:.0%} saved", file=sys.stderr)


if __name__ == "__main__":
    main()
