"""Methods, one file each: (config, classifier, bare encoder).

A new one is listed here, and thereby registered and tested.
"""

from .configuration_early_exit import EarlyExitConfig
from .modeling_berxit import BerxitConfig, BerxitForSequenceClassification, BerxitModel
from .modeling_dact_bert import DactBertConfig, DactBertForSequenceClassification, DactBertModel
from .modeling_deebert import DeeBertConfig, DeeBertForSequenceClassification, DeeBertModel
from .modeling_early_exit import EarlyExitForSequenceClassification, EarlyExitModel

METHODS: tuple[tuple[type[EarlyExitConfig], type[EarlyExitForSequenceClassification], type[EarlyExitModel]], ...] = (
    (BerxitConfig, BerxitForSequenceClassification, BerxitModel),
    (DactBertConfig, DactBertForSequenceClassification, DactBertModel),
    (DeeBertConfig, DeeBertForSequenceClassification, DeeBertModel),
)
