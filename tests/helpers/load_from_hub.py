"""Run by hub_client.py where adaexit_hf cannot be imported: load_from_hub.py FOUND REPO@REVISION ...

Load instance by the code that it carries, and save what it is and says.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    warnings.simplefilter("error")
sys.path.insert(0, str(Path(__file__).parents[1]))  # it runs as a script
from helpers.load_without_package import Blocked
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

TEXTS = ["w7 w8 w9", "w30", "w61 w11 w5 w12", "w20 w21", "w44 w3"]


@torch.no_grad()
def says(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What every exit answers, and what the model does with the threshold that its config has."""
    trace, early = model.eval()(**inputs, early_exit=False), model(**inputs)
    return {
        "threshold": model.config.exit_threshold,
        "trace": [trace.exit_logits, trace.exit_scores],
        "early": [early.logits, early.exit_layer],
    }


def loaded(name: str, **options: Any) -> dict[str, Any]:
    """Everything that the Auto classes give, compared by what it does."""
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    model = AutoModelForSequenceClassification.from_pretrained(name, **options)
    config, bare = AutoConfig.from_pretrained(name, **options), AutoModel.from_pretrained(name, **options)
    return {
        "module": type(model).__module__,
        "classes": [type(instance).__name__ for instance in (model, config, bare)],
        "says": says(model, tokenizer(TEXTS, padding=True, return_tensors="pt")),
        "encoder": bare.state_dict(),
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    torch.set_num_threads(1)
    results = {}
    for name in sys.argv[2:]:
        repo, _, revision = name.partition("@")
        results[name] = loaded(repo, revision=revision, trust_remote_code=True)
    torch.save(results, sys.argv[1])
