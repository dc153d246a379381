"""Measure quality and cost: traces, trade-off curves, thresholds, metrics, bootstrap intervals, FLOPs."""

from .bootstrap import Interval, bootstrap_samples, bootstrap_seeds
from .certificate import Certificate, Refusal, certify
from .certificate_file import SealedCertificate, save_certificate, verify_certificates
from .collect import collect_trace
from .cross_fit import CrossFitted, cross_fitted
from .curves import CurvePoint, MeanPoint, PairwiseAreas, area_under_curve, areas_between, mean_curve, score_at
from .fingerprints import overlap
from .flops import flops_per_exit
from .guarantee import Guarantee
from .later_answers import GoneOn, had_they_gone_on
from .metrics import METRICS, Metric, compute_score
from .monitor import CertificateMonitor
from .thresholds import choose_threshold, choose_within
from .trace import ExitTrace
from .tradeoff import (
    OracleBound,
    choose_layer,
    exit_histogram,
    expected_saving,
    layer_scores,
    majority_score,
    oracle_bound,
    oracle_exits,
    tradeoff_curve,
)

__all__ = [
    "METRICS",
    "Certificate",
    "CertificateMonitor",
    "CrossFitted",
    "CurvePoint",
    "ExitTrace",
    "GoneOn",
    "Guarantee",
    "Interval",
    "MeanPoint",
    "Metric",
    "OracleBound",
    "PairwiseAreas",
    "Refusal",
    "SealedCertificate",
    "area_under_curve",
    "areas_between",
    "bootstrap_samples",
    "bootstrap_seeds",
    "certify",
    "choose_layer",
    "choose_threshold",
    "choose_within",
    "collect_trace",
    "compute_score",
    "cross_fitted",
    "exit_histogram",
    "expected_saving",
    "flops_per_exit",
    "had_they_gone_on",
    "layer_scores",
    "majority_score",
    "mean_curve",
    "oracle_bound",
    "oracle_exits",
    "overlap",
    "save_certificate",
    "score_at",
    "tradeoff_curve",
    "verify_certificates",
]
