"""Tells Transformers' `pipeline` about `early-exit-text-classification`."""


def register_pipelines() -> None:
    """Have `pipeline("early-exit-text-classification", ...)` run this package's code, not that of the checkpoint."""
    # Here, since importing Transformers' pipelines may be what calls this function.
    from transformers import AutoModelForSequenceClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .models.classifier_base import CUSTOM_PIPELINES
    from .models.configuration_early_exit import EarlyExitConfig
    from .models.pipeline_early_exit import EarlyExitTextClassificationPipeline

    for task, facts in CUSTOM_PIPELINES.items():
        if task not in PIPELINE_REGISTRY.get_supported_tasks():  # else it warns
            PIPELINE_REGISTRY.register_pipeline(
                task, EarlyExitTextClassificationPipeline, AutoModelForSequenceClassification, type=facts["type"]
            )
    EarlyExitConfig.has_pipelines = True
