"""A text-classification pipeline that also says how many layers each text took, and how ready it was.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import Any

from transformers import TextClassificationPipeline

TASK = "early-exit-text-classification"
# What a config says of it: where the package is not installed, `pipeline(model=..., trust_remote_code=True)` finds it.
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_early_exit.EarlyExitTextClassificationPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "text",
    }
}


class EarlyExitTextClassificationPipeline(TextClassificationPipeline):
    """Transformers' pipeline, with `exit_layer` beside `label` and `score`: the number of layers run, 1..L.

    Each of its own arguments may be given to `pipeline(...)`, or to a call, where it comes first.

    Args:
        exit_threshold, early_exit: as for the model's forward.
        return_exit_score: add `exit_score`, how ready the exit was that was taken, in the unit of the model's exit
            criterion. It costs nothing: an exit is taken because of it.

    Raises:
        TypeError: the model has no exits.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model.eval()  # Trainer leaves a model in train mode, where no text exits early

    def check_model_type(self, supported_models: Any) -> None:
        """Instead of Transformers' list of names, which lacks a model that runs from a checkpoint's code."""
        # Not by its class: loaded from a folder, that exists twice.
        if getattr(self.model.config, "exit_layers", None) is None:
            raise TypeError(
                f"model: {type(self.model).__name__} has no exits; pass a checkpoint of adaexit_hf, or call "
                "pipeline('text-classification', ...)"
            )

    def _sanitize_parameters(
        self,
        exit_threshold: float | list[float] | None = None,
        early_exit: bool | None = None,
        return_exit_score: bool | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        # What a call leaves out must not replace what was given to `pipeline(...)`.
        if exit_threshold is not None:
            forward["exit_threshold"] = exit_threshold
        if early_exit is not None:
            forward["early_exit"] = early_exit
        if return_exit_score is not None:
            postprocess["return_exit_score"] = return_exit_score
        return preprocess, forward, postprocess

    def _forward(self, model_inputs: Any, **settings: Any) -> dict[str, Any]:
        answers = self.model.answers(model_inputs, **settings)
        return {"logits": answers.logits, "exit_layer": answers.exit_layer, "exit_score": answers.score}

    def postprocess(self, model_outputs: Any, return_exit_score: bool = False, **kwargs: Any) -> Any:
        """Label and score as Transformers has them, one dict, or a list of them with `top_k`; each gets the exit."""
        found = super().postprocess(model_outputs, **kwargs)
        exit = {name: model_outputs[name].item() for name in ("exit_layer", "exit_score")[: 1 + return_exit_score]}
        return found | exit if isinstance(found, dict) else [each | exit for each in found]
