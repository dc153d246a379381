"""The command `adaexit export` (needs the extra `onnx`)."""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..evaluation.fingerprints import add_seen_rows, hashes_of
from ..evaluation.thresholds import check_max_drop
from ..export.onnx import check_installed, export_onnx
from ..onnx_runtime.folder import SUBFOLDER
from .data_arguments import DataArguments
from .errors import wrong_usage
from .evaluate import labelled_splits, tell_of_rows_that_chose
from .options import MAX_DROP_HELP, Fraction, LoadOptions, OutputOptions, load
from .printing import print_export
from .runtime import tell_of_void_certificates
from .streams import print_json


@dataclass(kw_only=True)
class ExportOptions(DataArguments, LoadOptions, OutputOptions):
    """Flags of `adaexit export`."""

    output: str | None = field(
        default=None, metadata={"help": "Folder to write. Default: the subfolder onnx of the checkpoint's folder."}
    )
    int8: bool = field(
        default=False,
        metadata={
            "help": "Also export int8 graphs, a third of the size and the fastest on CPUs. Their scores are other "
            "ones, so pass labelled texts to choose their threshold."
        },
    )
    max_drop: Fraction = field(default=Fraction(0.01), metadata={"help": MAX_DROP_HELP})
    dtype: str = field(default="auto", init=False)  # no flags: the graphs compute in float32, wherever the model is
    device: str = field(default="cpu", init=False)


def export(options: ExportOptions, positionals: Any) -> None:
    """Export a checkpoint to ONNX, one graph per exit, to run it without PyTorch.

    Labelled texts that were not trained on (--validation_file, --task_name, ... as in adaexit evaluate) choose the
    threshold for int8, and measure every precision; without them the fp32 graphs keep the checkpoint's threshold, and
    the int8 graphs have none. The graphs are compared with PyTorch before they are saved.

    Prints a table, or with --json what early_exit.json says.
    """
    with wrong_usage():
        check_max_drop(options.max_drop)
    labelled = options.train_file or options.validation_file or options.task_name or options.dataset_name
    if options.max_drop != ExportOptions.max_drop and not (labelled and options.int8):
        raise ValueError(
            f"max_drop: got {options.max_drop:g}, but only a threshold for --int8 is chosen here, on labels; "
            "leave it out, or see adaexit calibrate"
        )
    unused = [each.name for each in fields(DataArguments) if getattr(options, each.name) != each.default]
    unused = [name for name in unused if name != "max_seq_length"]
    if unused and not labelled:
        raise ValueError(
            f"{unused[0]}: got {getattr(options, unused[0])!r} without labelled texts; pass --validation_file, "
            "--task_name or --dataset_name, or leave it out"
        )
    if options.output is None and not Path(positionals.checkpoint).is_dir():
        raise ValueError(
            f"output: '{positionals.checkpoint}' is not a local folder; pass --output FOLDER, e.g. --output onnx"
        )
    folder = Path(options.output) if options.output else Path(positionals.checkpoint, SUBFOLDER)
    check_installed()
    model, tokenizer = load(positionals.checkpoint, options)
    validation, metrics = None, None
    if labelled:
        datasets_by_split, _, metrics = labelled_splits(model, tokenizer, options)
        validation = next(iter(datasets_by_split.values()))
    elif options.int8:
        print(
            "adaexit export: no labelled texts, so no threshold is chosen for int8; pass --validation_file FILE, or "
            f"later call adaexit calibrate {positionals.checkpoint} --runtime onnx --validation_file FILE",
            file=sys.stderr,
        )
    if not options.int8 and (folder / "int8").is_dir():
        print(
            f"adaexit export: '{folder}' has int8 graphs of an earlier export, which will be removed; pass --int8 to "
            "export them anew",
            file=sys.stderr,
        )
    manifest = export_onnx(
        model,
        tokenizer,
        folder,
        int8=options.int8,
        validation=validation,
        metrics=metrics,
        max_drop=options.max_drop,
    )
    if validation is not None and options.int8 and Path(positionals.checkpoint).is_dir():
        add_seen_rows(positionals.checkpoint, {"threshold": hashes_of(validation)})
    if metrics:
        results = {"fp32": manifest["precisions"]["fp32"]["results"]}
        tell_of_rows_that_chose("export", positionals.checkpoint, model, results, metrics[0])
    if Path(positionals.checkpoint).is_dir():
        tell_of_void_certificates("export", Path(positionals.checkpoint))
    if options.json:
        print_json(manifest)
    else:
        print_export(manifest, folder, metrics)
