"""Classify texts from a shell: `python -m adaexit_onnx FOLDER "a text" ...`."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from .classifier import OnnxEarlyExitClassifier

# Lines that are answered together.
BLOCK = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answers to texts as JSON lines, as `adaexit predict` does.

    Args:
        arguments: those of the command line. Default: None, of this process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser("python -m adaexit_onnx", description="Classify texts with an exported model.")
    parser.add_argument("folder", help="the exported model, its checkpoint's folder, or a name on the Hub")
    parser.add_argument("texts", nargs="*", help="default: the lines of stdin. A pair is one text, with a tab between")
    parser.add_argument("--precision", help="fp32 or int8; default: int8 if it was exported")
    given = parser.parse_args(arguments)
    try:
        classifier = OnnxEarlyExitClassifier.from_pretrained(given.folder, given.precision)
        texts = iter(given.texts or (line.rstrip("\r\n") for line in sys.stdin))
        while block := list(islice(texts, BLOCK)):
            for answer in _answers(classifier, block):
                print(json.dumps(answer), flush=True)  # noqa: T201
    except (ValueError, ImportError, OSError) as error:
        print(f"adaexit_onnx: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _answers(classifier: OnnxEarlyExitClassifier, texts: list[str]) -> Iterator[dict[str, Any]]:
    """Answer texts in order; an empty one has nulls, and a reason, as in `adaexit predict`."""
    items = [text.split("\t") if classifier.facts["pairs"] else [text] for text in texts]
    filled = [item for item in items if all(map(str.strip, item))]
    found = iter(classifier(filled) if filled else [])
    keys = ("labels", "scores") if classifier.facts["multi_label"] else ("label", "score")[classifier.labels is None :]
    empty = dict.fromkeys((*keys, "exit_layer")) | {"reason": "the text is empty"}
    for text, item in zip(texts, items, strict=True):
        yield {"text": text} | (next(found) if all(map(str.strip, item)) else empty)


if __name__ == "__main__":
    sys.exit(main())
