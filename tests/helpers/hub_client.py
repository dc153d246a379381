"""Run by test_push_and_load.py: hub_client.py FOLDER. Push and load with the true client; save the results in FOLDER.

A process of its own, since huggingface_hub reads where the Hub is when it is imported.
"""
# ruff: noqa: E402

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # it runs as a script
from helpers.fresh import run_script
from helpers.hub_server import TOKEN, Hub, Repo

warnings.simplefilter("error")
# With hf_xet disabled, huggingface_hub itself sends large files in a way that its HTTP client calls old.
warnings.filterwarnings("ignore", "Use 'content", DeprecationWarning)
FOLDER, HUB = Path(sys.argv[1]), Hub()
os.environ.update(HUB.environment(FOLDER / "cache"))
os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)  # an older name of HF_TOKEN

import torch
from helpers.load_from_hub import TEXTS, loaded, says
from helpers.runs import new_model, new_trainer
from helpers.tiny import build
from helpers.words import new_tokenizer
from huggingface_hub import upload_folder
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from adaexit_hf import DactBertForSequenceClassification, EarlyExitTrainer

REPO, TRAINED = "org/dact-bert-mrpc", "org/deebert-trained"
CARD = "---\nlibrary_name: transformers\ntags:\n- early-exit\n---\n# Written by hand\n\n![curve](curve.png)\n"
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def head(repo: str) -> str:
    return HUB.repos[repo].branches["main"]


def shift(model: PreTrainedModel) -> None:
    """Other weights, in a file of the same size."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)


def failure(action: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
    """The error that a user sees, and the names of those that it was raised from."""
    try:
        action(*arguments, **options)
    except Exception as error:
        causes, cause = [], error.__cause__
        while cause is not None:
            causes.append(type(cause).__name__)
            cause = cause.__cause__
        return {"type": type(error).__name__, "message": str(error), "causes": causes}
    return {"type": None, "message": "there was no error", "causes": []}


# Where the connection fails the client tries again five times, after 1, 2, 4, 8 and 8 seconds.
at_once = partial(patch, "time.sleep")


@contextmanager
def dropping(requests: str) -> Iterator[None]:
    HUB.drops, HUB.dropped = requests, 0
    with at_once():
        yield
    HUB.drops = None


def without_package(*names: str) -> dict[str, Any]:
    script = Path(__file__).with_name("load_from_hub.py")
    file = FOLDER / "without_package.pt"
    run_script(script, str(file), *names, **HUB.environment(FOLDER / "cache"))
    return torch.load(file)


def published(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, inputs: Any) -> dict[str, Any]:
    """Two versions, of which only the first has a card, pictures and a tokenizer of its own commit."""
    card = FOLDER / "card"
    card.mkdir()
    (card / "README.md").write_text(CARD)
    (card / "curve.png").write_bytes(PICTURE)
    model.push_to_hub(REPO)
    tokenizer.push_to_hub(REPO)
    upload_folder(repo_id=REPO, folder_path=card)
    results: dict[str, Any] = {"old": {"sha": head(REPO), "says": says(model, inputs)}}
    shift(model)
    model.config.exit_threshold = 0.25
    model.push_to_hub(REPO)
    model.push_to_hub(REPO, revision="candidate")
    results["new"] = {"sha": head(REPO), "says": says(model, inputs), "encoder": encoder_of(model)}
    results["branches"] = sorted(HUB.repos[REPO].branches)
    results["files"] = HUB.repos[REPO].commits[head(REPO)]
    return results


def encoder_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if name.startswith("encoder.")}


def trained(tokenizer: PreTrainedTokenizerFast, inputs: Any) -> tuple[EarlyExitTrainer, dict[str, Any]]:
    """DeeBERT's two stages: the commits after each step of the way, what lies on the Hub, and what the model says."""
    trainer = new_trainer(
        new_model("deebert", exit_threshold=0.5),
        FOLDER / "run",
        trainer_options={"processing_class": tokenizer},
        push_to_hub=True,
        hub_model_id=TRAINED,
        hub_token=TOKEN,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
    )
    titles = HUB.repos[TRAINED].titles
    results: dict[str, Any] = {"titles": [len(titles)]}
    for stage in ("backbone", "exits"):
        trainer.train(stage=stage)
        results["titles"].append(len(titles))
    results |= {"sha": head(TRAINED), "files": HUB.repos[TRAINED].commits[head(TRAINED)], "says": None}
    results["says"] = says(trainer.model, inputs)
    return trainer, results


def interrupted(model: PreTrainedModel, trainer: EarlyExitTrainer, inputs: Any) -> dict[str, Any]:
    """Pushes that break while the weights are sent, and at the commit."""
    results: dict[str, Any] = {}
    shift(model)
    for moment, requests in {"weights": "^PUT /lfs/", "commit": f"^POST /api/models/{REPO}/commit/"}.items():
        with dropping(requests):
            results[moment] = failure(model.push_to_hub, REPO)
        results[moment] |= {
            "sha": head(REPO),
            "dropped": HUB.dropped,
            "says": says(AutoModelForSequenceClassification.from_pretrained(REPO, cache_dir=FOLDER / moment), inputs),
        }
    before = head(TRAINED)
    shift(trainer.model)
    with dropping(f"^POST /api/models/{TRAINED}/commit/"):
        results["trainer"] = failure(trainer.push_to_hub) | {"unchanged": head(TRAINED) == before}
    model.push_to_hub(REPO)
    results["again"] = {
        "says": says(AutoModelForSequenceClassification.from_pretrained(REPO), inputs),
        "expected": says(model, inputs),
    }
    return results


LOADERS = {
    "from_pretrained": AutoModelForSequenceClassification.from_pretrained,
    "from_encoder_pretrained": DactBertForSequenceClassification.from_encoder_pretrained,
}


def refused(model: PreTrainedModel, trainer: EarlyExitTrainer, sha: str) -> dict[str, Any]:
    """What a user sees who asks for what is not there, is not theirs, or cannot be reached."""
    HUB.repos["org/gated"] = Repo(gated=True)
    HUB.repos["org/gated"].commit("main", HUB.repos[REPO].commits[sha], "model")
    asked = {name: {"unknown": "org/unknown", "gated": "org/gated"} for name in LOADERS}
    results = {
        f"{case}, {name}": failure(LOADERS[name], repo) for name in LOADERS for case, repo in asked[name].items()
    }
    results["revision"] = failure(LOADERS["from_pretrained"], REPO, revision="f" * 40)
    with patch.dict(os.environ):
        del os.environ["HF_TOKEN"]
        results["no token, push"] = failure(model.push_to_hub, "org/mine")
        results["no token, unknown"] = failure(LOADERS["from_pretrained"], "org/unknown")
        results["no token, gated"] = failure(LOADERS["from_pretrained"], "org/gated")
    HUB.close()
    with at_once():
        for name, load in LOADERS.items():
            results[f"no network, {name}"] = failure(load, "org/other")
        results["no network, push"] = failure(model.push_to_hub, REPO)
        results["no network, trainer"] = failure(trainer.push_to_hub)
        results["no network, cached"] = loaded(REPO, revision=sha)
    return results


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = build("dact-bert", exit_threshold=0.0), new_tokenizer()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    HUB.start()
    results = {"published": published(model, tokenizer, inputs)}
    old = results["published"]["old"]["sha"]
    results["with package"] = {"new": loaded(REPO), "old": loaded(REPO, revision=old)}
    results["class"] = says(DactBertForSequenceClassification.from_pretrained(REPO, revision="candidate"), inputs)
    trainer, results["trained"] = trained(tokenizer, inputs)
    results["trained"]["loaded"] = loaded(TRAINED)
    names = {"old": f"{REPO}@{old}", "trained": f"{TRAINED}@{results['trained']['sha']}"}
    without = without_package(*names.values())
    results["without package"] = {key: without[name] for key, name in names.items()}
    results["interrupted"] = interrupted(model, trainer, inputs)
    results["refused"] = refused(model, trainer, old)
    torch.save(results, FOLDER / "found.pt")


if __name__ == "__main__":
    main()
