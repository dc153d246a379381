"""A text-classification pipeline that also returns the number of layers run for each text, and the readiness score.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import Any

from transformers import TextClassificationPipeline

from .padded_batches import check_kind

TASK = "early-exit-text-classification"
# Saved in the config, so that `pipeline(model=..., trust_remote_code=True)` works where the package is not installed.
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_early_exit.EarlyExitTextClassificationPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "text",
    }
}


class EarlyExitTextClassificationPipeline(TextClassificationPipeline):
    """Transformers' text-classification pipeline; besides `label` and `score` it returns `exit_layer`.

    `exit_layer` is the number of layers run, from 1. Texts are truncated to the tokenizer's `model_max_length`, unless
    `truncation=False` is passed. The pipeline has three more arguments than that of Transformers. They can be passed
    to `pipeline(...)`, or to a call, which overrides those of `pipeline(...)`:

    - `exit_threshold`: as in the model's `forward`.
    - `early_exit`: as in the model's `forward`.
    - `return_exit_score`: whether to return `exit_score`, too, the readiness score at the exit where the text left, in
      the unit of the exit criterion. It needs no additional computation.

    Args:
        **kwargs: as in Transformers, and the three above.

    Raises:
        TypeError: the model has no exits.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model.eval()  # Trainer leaves a model in training mode, in which no text exits early

    def check_model_type(self, supported_models: Any) -> None:
        """Check that the model has exits.

        Transformers would look up the class's name in a list, which lacks classes loaded from a checkpoint's code.

        Args:
            supported_models: not used.

        Raises:
            TypeError: the model has no exits.
        """
        # Not `isinstance`: a model that runs the code saved with its checkpoint is of another class.
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
        # Arguments that a call does not pass must not replace those passed to `pipeline(...)`.
        if exit_threshold is not None:
            forward["exit_threshold"] = exit_threshold
        if early_exit is not None:
            forward["early_exit"] = early_exit
        if return_exit_score is not None:
            postprocess["return_exit_score"] = return_exit_score
        return preprocess, forward, postprocess

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:
        """Tokenize one text or one pair of texts.

        Args:
            inputs: as in Transformers: a text, or `{"text": ..., "text_pair": ...}`.
            **tokenizer_kwargs: arguments of the tokenizer. Default: `truncation=True`.

        Raises:
            ValueError: it is a pair, but the model was trained on single texts, or the other way round.
        """
        pair = inputs.get("text_pair") is not None if isinstance(inputs, dict) else not isinstance(inputs, str)
        check_kind(pair, getattr(self.model.config, "pairs", None), f"inputs: {inputs!r:.60}")
        return super().preprocess(inputs, **{"truncation": True} | tokenizer_kwargs)

    def _forward(self, model_inputs: Any, **settings: Any) -> dict[str, Any]:
        answers = self.model.answers(model_inputs, **settings)
        return {"logits": answers.logits, "exit_layer": answers.exit_layer, "exit_score": answers.score}

    def postprocess(self, model_outputs: Any, return_exit_score: bool = False, **kwargs: Any) -> Any:
        """Return label and score as in Transformers, with the exit layer.

        Args:
            model_outputs: what `_forward` returned for one text.
            return_exit_score: whether to add `exit_score`.
            **kwargs: as in Transformers.

        Returns:
            A dict with `label`, `score` and `exit_layer`; a list of such dicts with `top_k`.
        """
        labels = super().postprocess(model_outputs, **kwargs)
        exit = {name: model_outputs[name].item() for name in ("exit_layer", "exit_score")[: 1 + return_exit_score]}
        return labels | exit if isinstance(labels, dict) else [label | exit for label in labels]
