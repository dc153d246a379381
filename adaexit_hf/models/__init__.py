"""Methods, one file each; one that is imported here is registered, exported and tested."""

from ..registration import register
from .configuration_early_exit import EarlyExitConfig
from .modeling_berxit import *
from .modeling_dact_bert import *
from .modeling_deebert import *
from .modeling_depth_adaptive import *
from .modeling_early_exit import EarlyExitForSequenceClassification, EarlyExitModel
from .modeling_fastbert import *
from .modeling_pabee import *
from .modeling_right_tool import *

# (config, classifier, bare encoder) of every method
METHODS: tuple[tuple[type[EarlyExitConfig], type[EarlyExitForSequenceClassification], type[EarlyExitModel]], ...] = (
    tuple(
        (model.config_class, model, encoder)
        for model in EarlyExitForSequenceClassification.__subclasses__()
        for encoder in EarlyExitModel.__subclasses__()
        if encoder.config_class is model.config_class
    )
)

__all__ = [
    "METHODS",
    *(public.__name__ for config, model, _ in METHODS for public in (config, model)),
]

register(METHODS)
