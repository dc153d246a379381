"""Tells Transformers' `pipeline` about `early-exit-text-classification`."""

from transformers import AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .models.configuration_early_exit import EarlyExitConfig
from .models.pipeline_early_exit import TASK, EarlyExitTextClassificationPipeline


def register_pipelines() -> None:
    """Have `pipeline("early-exit-text-classification", ...)` run this package's code, not that of the checkpoint."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # else it warns
        PIPELINE_REGISTRY.register_pipeline(
            TASK, EarlyExitTextClassificationPipeline, AutoModelForSequenceClassification, type="text"
        )
    EarlyExitConfig.has_pipelines = True
