"""Rank passages by how well they answer a query, each read no deeper than it needs: a cross-encoder with exits.

    python examples/rerank.py --model_name_or_path out --query "Who wrote Hamlet?" --passages passages.txt

`out` is a regression with exits (one label), say of STS-B: `run_glue_exit.py --method berxit --task_name stsb`. The
passages stand in a file, one a line; `-` reads them from standard input. Prints score, layers run and passage, best
first. After `import adaexit_hf`, `sentence_transformers.CrossEncoder("out")` gives the same order, and exits early,
too; its scores are those here with `activation_fn=torch.nn.Identity()`, else it applies a sigmoid.
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
    """The passages, best first; settings are those of `predict`."""
    if model.config.num_labels != 1:
        raise ValueError(f"model: has {model.config.num_labels} labels; pass a regression, num_labels=1")
    found = predict(model, [(query, passage) for passage in passages], tokenizer, **settings)
    scores, layers = found.logits[:, 0].tolist(), found.exit_layer.tolist()
    return sorted(map(Ranked, scores, layers, passages), key=lambda each: each.score, reverse=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint with exits, Hub name or folder")
    parser.add_argument("--query", required=True)
    parser.add_argument("--passages", required=True, help="file with one passage a line, or - for standard input")
    parser.add_argument("--exit_threshold", type=float, help="default: the checkpoint's")
    parser.add_argument("--top_k", type=int, help="how many to print; default: all")
    options = parser.parse_args(argv)
    text = sys.stdin.read() if options.passages == "-" else Path(options.passages).read_text(encoding="utf-8")
    passages = [line for line in text.splitlines() if line.strip()]
    if not passages:
        raise ValueError(f"passages: '{options.passages}' has no line with a passage")
    model = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    ranked = rank(model, tokenizer, options.query, passages, exit_threshold=options.exit_threshold)
    for each in ranked[: options.top_k]:
        print(f"{each.score:8.3f}  layer {each.exit_layer:2d}  {each.passage}")
    mean, depth = sum(each.exit_layer for each in ranked) / len(ranked), model.config.exit_layers[-1]
    print(f"{mean:.2f} of {depth} layers for a passage, {1 - mean / depth:.0%} saved", file=sys.stderr)


if __name__ == "__main__":
    main()
