"""Early exit for Hugging Face Transformers: encoders that decide per input how many layers to run."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from .evaluation import (
    CurvePoint,
    ExitTrace,
    area_under_curve,
    choose_threshold,
    collect_trace,
    expected_saving,
    tradeoff_curve,
)
from .inference import Prediction, Predictions, predict, predict_stream
from .models import *
from .models import METHODS
from .reconstruction import DataCollatorWithTokenDepths, anytime_masked_lm, estimate_depths_by_reconstruction
from .text_rows import DatasetError
from .training import EarlyExitTrainer, EarlyExitTrainingArguments

__all__ = [
    "METHODS",
    "CurvePoint",
    "DataCollatorWithTokenDepths",
    "DatasetError",
    "EarlyExitTrainer",
    "EarlyExitTrainingArguments",
    "ExitTrace",
    "Prediction",
    "Predictions",
    "anytime_masked_lm",
    "area_under_curve",
    "choose_threshold",
    "collect_trace",
    "estimate_depths_by_reconstruction",
    "expected_saving",
    "predict",
    "predict_stream",
    "tradeoff_curve",
    *(model_class.__name__ for config, model, _ in METHODS for model_class in (config, model)),
]

__version__ = "0.1.0.dev0"

for _config, _model, _encoder in METHODS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForSequenceClassification.register(_config, _model, exist_ok=True)
    AutoModel.register(_config, _encoder, exist_ok=True)
    # Model cards and Transformers' own tests find a class's task by its name.
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[_config.model_type] = _model.__name__
    # The code of these classes travels inside every checkpoint, which then loads without this package.
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForSequenceClassification")
    _encoder.register_for_auto_class("AutoModel")
