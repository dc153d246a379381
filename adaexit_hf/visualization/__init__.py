"""Show results: figures (extra `plot`) and an HTML report with a threshold slider."""

from .attributed_tokens import TokenAttributions, token_attributions
from .figures import comparison_figure, exit_figure, tradeoff_figure
from .html_report import Report, build_report, write_report

__all__ = [
    "Report",
    "TokenAttributions",
    "build_report",
    "comparison_figure",
    "exit_figure",
    "token_attributions",
    "tradeoff_figure",
    "write_report",
]
