"""Run by test_pipelines.py where adaexit_hf cannot be imported: pipeline_without_package.py FOLDER.

Classifies with the pipelines of every checkpoint below FOLDER, by the code that it carries.
What is logged goes into FOLDER/stderr.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.dup2(os.open(f"{sys.argv[1]}/stderr", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())

import torch
from transformers import pipeline
from transformers.utils import logging

OWN = "early-exit-text-classification"
TEXTS = [" ".join(f"w{4 + (7 * row + 3 * word) % 60}" for word in range(1 + row % 6)) for row in range(12)]


def answers(classify: Any) -> dict[str, Any]:
    """What a pipeline says: as it is, in batches, with scores, and of all labels of a pair."""
    results = {"single": classify(TEXTS[0]), "batch": classify(TEXTS, batch_size=8)}
    results["scores"] = classify(TEXTS, batch_size=8, return_exit_score=True)
    results["all"] = classify([{"text": TEXTS[1], "text_pair": TEXTS[2]}], top_k=None, early_exit=False)
    return results


def main(folder: Path) -> None:
    logging.disable_progress_bar()
    for path in sorted(folder.glob("*/config.json")):
        classify = pipeline(model=str(path.parent), trust_remote_code=True)
        results = answers(classify)
        classify.save_pretrained(path.parent / "again")
        again = pipeline(OWN, model=str(path.parent / "again"), trust_remote_code=True)
        results["again"] = again(TEXTS, batch_size=8)
        (path.parent / "found.json").write_text(json.dumps(results))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from helpers.load_without_package import Blocked

    sys.meta_path.insert(0, Blocked())
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
