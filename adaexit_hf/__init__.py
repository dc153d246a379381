"""Early exit for Hugging Face Transformers: encoders that decide per input how many layers to run."""

from typing import TYPE_CHECKING

from ._lazy_names import lazy_names
from .registration import register_when_needed

if TYPE_CHECKING:
    from .hub.card_facts import CardDataset, MeasuredSpeed
    from .hub.conversion import convert_checkpoint
    from .evaluation.curves import PairwiseAreas, areas_between
    from .evaluation.curves import CurvePoint, area_under_curve, choose_threshold
    from .evaluation.trace import ExitTrace
    from .evaluation.tradeoff import (
        OracleBound,
        exit_histogram,
        expected_saving,
        layer_scores,
        oracle_bound,
        oracle_exits,
        tradeoff_curve,
    )
    from .evaluation.collect import collect_trace
    from .evaluation.flops import flops_per_exit
    from .visualization.html_report import Report, build_report, write_report
    from .visualization.token_attributions import TokenAttributions, token_attributions
    from .inference.predict import Prediction, Predictions, predict, predict_stream
    from .interpretation.attribution import Attribution, Conductance, Explanation, explain, layer_conductance
    from .evaluation.bootstrap import Interval, bootstrap_samples, bootstrap_seeds
    from .hub.model_card import write_model_card
    from .models.modeling_berxit import *
    from .models.modeling_dact_bert import *
    from .models.modeling_deebert import *
    from .models.modeling_depth_adaptive import *
    from .models.modeling_fastbert import *
    from .models.modeling_pabee import *
    from .models.modeling_right_tool import *
    from .models import METHODS
    from .interpretation.probes import (
        AttentionEntropy,
        BleuCorrelation,
        as_json,
        attention_entropy,
        confidence_bleu_correlation,
    )
    from .evaluation.later_answers import GoneOn, had_they_gone_on
    from .pruning.unused_layers import prune_unused_layers
    from .data.collators import DataCollatorWithTokenDepths
    from .data.reconstruction import anytime_masked_lm, estimate_depths_by_reconstruction
    from .inference.row_reader import DatasetError
    from .trainer.trainer import EarlyExitTrainer
    from .trainer.training_args import EarlyExitTrainingArguments

__version__ = "0.1.0.dev0"

# The methods by model type, each with the stem of its classes: DactBertConfig, DactBertForSequenceClassification.
_STEMS = {
    "berxit": "Berxit",
    "dact-bert": "DactBert",
    "deebert": "DeeBert",
    "depth-adaptive": "DepthAdaptive",
    "fastbert": "FastBert",
    "pabee": "Pabee",
    "right-tool": "RightTool",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)

register_when_needed(_STEMS)
