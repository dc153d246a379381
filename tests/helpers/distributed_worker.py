"""Train every case in each of several processes, and write what came out; see `test_training_distributed.py`."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from helpers.runs import METHODS, At, History, interrupted, largest_difference, new_model, new_trainer, weights
from safetensors.torch import save_file

from adaexit_hf.trainer import frozen_states
from adaexit_hf.trainer.training_args import CHECKPOINTING

# Adam with its usual epsilon makes whole steps of the rounding noise that is the gradient of a key's bias.
SETTINGS: dict[str, Any] = {"max_steps": 5, "adam_epsilon": 1e-4, "weight_decay": 0.1}
RESUMED: dict[str, Any] = SETTINGS | {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
FILED = ("deebert", "fastbert")
# Which parameters a step leaves out, and which tokens a layer runs, is all that a method can change of checkpointing:
# those of BERxiT and DeeBERT change from step to step and from stage to stage; the depth-adaptive method skips tokens.
CHECKPOINTED = ("berxit", "deebert", "depth-adaptive")
CASES = {
    f"{method}-checkpointing" if checkpointing else method: (method, checkpointing)
    for method in METHODS
    for checkpointing in (False, True)
    if not checkpointing or method in CHECKPOINTED
}


def ranks_agree(model: torch.nn.Module) -> bool:
    """Are all weights those of rank 0, bit for bit?"""
    for value in model.parameters():
        first = value.detach().clone()
        torch.distributed.broadcast(first, 0)
        differs = torch.tensor(int(not torch.equal(first, value)))
        torch.distributed.all_reduce(differs)
        if differs:
            return False
    return True


def trained(method: str, checkpointing: bool, folder: Path) -> dict[str, Any]:
    history, model = History(), new_model(method)
    settings = {"per_device_train_batch_size": 2, CHECKPOINTING: checkpointing} | SETTINGS
    trainer = new_trainer(model, folder, [history], **settings)
    trainer.train()
    if trainer.is_world_process_zero():
        save_file(weights(model), f"{folder}.safetensors")
    return {"ranks agree": ranks_agree(model), "logs": history.logs, "processes": trainer.accelerator.num_processes}


def resumed(method: str, stage: int, folder: Path) -> dict[str, Any]:
    """Difference between a run that was interrupted and resumed, and one that was not."""
    through = new_trainer(new_model(method, dropout=0.1), folder / "through", **RESUMED)
    through.train()
    breaking = new_trainer(
        new_model(method, dropout=0.1), folder / "broken", [At("on_step_end", interrupted, stage, 3)], **RESUMED
    )
    try:
        breaking.train()
    except KeyboardInterrupt:
        pass
    else:
        raise RuntimeError("the run was not interrupted")
    again = new_trainer(new_model(method, dropout=0.1, seed=99), folder / "broken", **RESUMED)
    again.train(resume_from_checkpoint=True)
    difference = largest_difference(weights(again.model), weights(through.model))
    return {"ranks agree": ranks_agree(again.model), "difference": difference}


def filed(method: str, folder: Path) -> dict[str, Any]:
    """A run whose frozen encoder leaves its states in a file, and the rows for which each process ran it."""
    frozen_states.MOST_ROWS = 5  # else all rows were one batch
    model, rows = new_model(method), 0
    stage = model.stages[-1].name

    def count(module: Any, given: Any, hidden: torch.Tensor) -> None:
        nonlocal rows
        rows += len(hidden)

    model.encoder.embeddings.register_forward_hook(count)
    options = SETTINGS | {"per_device_train_batch_size": 2, "frozen_states_memory": 0}
    there: list[int] = []
    look = At("on_step_end", lambda **_: there.append(len(list(folder.rglob("frozen_states*")))))
    trainer = new_trainer(model, folder, [look], **options)
    trainer.train(stage=stage)
    if trainer.is_world_process_zero():
        save_file(weights(model), f"{folder}.safetensors")
    trainer.accelerator.wait_for_everyone()
    left = [path.name for path in folder.rglob("frozen_states*")]
    return {"ranks agree": ranks_agree(model), "rows": gather_object([rows]), "files": set(there) == {1}, "left": left}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results = {}
    for name, (method, checkpointing) in CASES.items():
        results[name] = trained(method, checkpointing, folder / name)
    results["resumed berxit"] = resumed("berxit", 1, folder / "resumed-berxit")
    results["resumed deebert"] = resumed("deebert", 2, folder / "resumed-deebert")
    for method in FILED:
        results[f"filed {method}"] = filed(method, folder / f"filed-{method}")
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
