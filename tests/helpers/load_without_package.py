"""Run by test_shipped_checkpoints.py where adaexit_hf cannot be imported: load_without_package.py FOLDER.

For every checkpoint below FOLDER: load it by the code that it carries, save what it answers, save it again and reload.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel


class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name.split(".")[0] == "adaexit_hf":
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


@torch.no_grad()
def answers(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    output = model.eval()(**inputs, early_exit=False)
    return {"logits": output.exit_logits, "scores": output.exit_scores}


def main(folder: Path) -> None:
    inputs = torch.load(folder / "inputs.pt")
    for path in sorted(folder.glob("*/config.json")):
        checkpoint, results, options = path.parent, {}, {"trust_remote_code": True}
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, **options)
        results["float32"] = answers(model, inputs)
        half = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.bfloat16, **options)
        results["bfloat16"] = answers(half, inputs)
        model.save_pretrained(checkpoint / "again")
        again = AutoModelForSequenceClassification.from_pretrained(checkpoint / "again", **options)
        results["again"] = answers(again, inputs)
        bare = AutoModel.from_pretrained(checkpoint, **options)
        results["encoder"] = {"class": type(bare).__name__, "weights": bare.state_dict()}
        torch.save(results, checkpoint / "found.pt")


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
