"""Classify the texts in Parquet files of any size with Ray Data, on one machine or a cluster (extra `ray`).

    python examples/predict_ray.py --model_name_or_path out --input data --output_dir answers --workers 2

For every input file there is an output file of the same name, with the same rows in the same order: the input's
columns, and logits, label, exit_layer and exit_score. A file gets its final name only when it is complete, and
existing files are not computed again, so the same command continues a stopped run. For another model or threshold use
another folder. On a cluster all machines must see the same files.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from adaexit_hf import predict
from adaexit_hf.evaluation.trace import predictions
from adaexit_hf.models.configuration_early_exit import EarlyExitConfig

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data
except ImportError:  # said by `main`, after --help
    ray = None

# Rows per call of `predict`. A worker reads the whole row group that contains them, which takes little time compared
# with the model.
ROWS = 16384


class Predictor:
    """A Ray worker: loads the model once and then classifies one piece of a file after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(max(1, int(options.cpus_per_worker)))
        model = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path)
        self.model = model.to("cuda" if options.gpus_per_worker else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
        self.options = options

    def __call__(self, pieces: dict[str, Any]) -> pa.Table:
        file, group, start, rows = (pieces[name].item() for name in ("file", "group", "start", "rows"))
        with pq.ParquetFile(file) as source:
            table = source.read_row_group(group).slice(start, rows)
        texts = [table[name].to_pylist() for name in self.options.text_columns]
        if any(None in column for column in texts):
            raise ValueError(f"text_columns: '{file}' has rows without a text; drop these rows or fill in a text")
        settings = {name: getattr(self.options, name) for name in ("exit_threshold", "batch_tokens")}
        output = predict(self.model, list(zip(*texts, strict=True)), self.tokenizer, progress=False, **settings)
        config = self.model.config
        labels = predictions(output.logits, config.multi_label).tolist()
        if config.multi_label:
            labels = [[config.id2label[label] for label, given in enumerate(row) if given] for row in labels]
        elif config.num_labels > 1:
            labels = [config.id2label[label] for label in labels]
        columns = (output.logits.tolist(), labels, output.exit_layer.tolist(), output.exit_score.tolist())
        for field, values in zip(output_fields(config, self.options.prefix), columns, strict=True):
            table = table.append_column(field, pa.array(values, field.type))
        return table


def output_fields(config: EarlyExitConfig, prefix: str) -> list[pa.Field]:
    """The added columns; for regression the label is the predicted number, for several labels at once their list."""
    label = pa.list_(pa.string()) if config.multi_label else pa.float32() if config.num_labels == 1 else pa.string()
    types = {"logits": pa.list_(pa.float32()), "label": label, "exit_layer": pa.int32(), "exit_score": pa.float32()}
    return [pa.field(prefix + name, arrow_type) for name, arrow_type in types.items()]


def outputs_of(pattern: str, output_dir: str) -> dict[str, Path]:
    """Map every input file to its output file.

    The path of an output within `output_dir` is that of the input below the part of the pattern without wildcards.
    """
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parent.parts))
    if Path(pattern).is_dir():
        root, pattern = Path(pattern), f"{glob.escape(pattern)}/**/*.parquet"
    files = [Path(file).absolute() for file in sorted(glob.glob(pattern, recursive=True))]
    output_root = Path(output_dir).absolute()
    files = [file for file in files if output_root not in file.parents]  # the output folder may be within the input
    if not files:
        raise ValueError(f"input: no file matches '{pattern}'; pass a folder with .parquet files, a file or a pattern")
    return {str(file): output_root / file.relative_to(root.absolute()) for file in files}


def plan(file: str, options: argparse.Namespace, fields: list[pa.Field]) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """The columns of the output, and the pieces of the input, each with up to `ROWS` rows of a row group."""
    metadata = pq.read_metadata(file)
    schema, pieces = metadata.schema.to_arrow_schema(), []
    for name in options.text_columns:
        if name not in schema.names:
            raise ValueError(f"text_columns: '{file}' has no column '{name}'; it has {', '.join(schema.names)}")
    for field in fields:
        if field.name in schema.names:
            raise ValueError(f"input: '{file}' has a column '{field.name}'; pass --prefix, e.g. --prefix predicted_")
        schema = schema.append(field)
    for group, size in enumerate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)):
        for start in range(0, size, ROWS):
            pieces.append({"file": file, "group": group, "start": start, "rows": min(ROWS, size - start)})
    return schema, pieces


def classified(pieces: list[dict[str, Any]], options: argparse.Namespace) -> Iterator[pa.Table]:
    """The rows of all pieces with the added columns, in order, in one or several tables."""
    ray.init(ignore_reinit_error=True)
    needed, available = options.workers * options.cpus_per_worker, ray.cluster_resources().get("CPU", 0)
    if needed > available:
        message = f"workers: need {needed:g} CPUs, but Ray has {available:g}; some workers will wait for a free CPU"
        warnings.warn(message, stacklevel=2)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    # Workers read the files themselves: Ray's own reader needs another CPU, and would wait forever if workers use all.
    tables = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        Predictor, batch_size=1, compute=ray.data.ActorPoolStrategy(size=options.workers),
        fn_constructor_args=(options,), num_cpus=options.cpus_per_worker, num_gpus=options.gpus_per_worker,
    )  # fmt: skip
    yield from tables.iter_batches(batch_size=None, batch_format="pyarrow")


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the output files that do not exist yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="Hub name or folder of an early-exit model")
    parser.add_argument("--input", required=True, help="Parquet files: a folder, a file, or a quoted pattern")
    parser.add_argument("--output_dir", required=True, help="folder for the output files")
    parser.add_argument(
        "--text_columns", nargs="+", default=["text"], help="column of the texts, or two columns for pairs"
    )
    parser.add_argument("--exit_threshold", type=float, help="default: that of the checkpoint")
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each with its own model")
    parser.add_argument("--cpus_per_worker", type=float, default=1, help="CPUs, and threads, per process")
    parser.add_argument(
        "--gpus_per_worker", type=float, default=0, help="0.5: two workers share a GPU; 0: run on the CPU"
    )
    parser.add_argument("--batch_tokens", type=int, help="tokens per batch, as for predict")
    parser.add_argument("--prefix", default="", help="prefix of the names of the added columns")
    options = parser.parse_args(argv)
    if ray is None:
        parser.error("ray: not installed; run pip install adaexit_hf[ray]")
    config = AutoConfig.from_pretrained(options.model_name_or_path)
    if options.exit_threshold is not None:
        config.thresholds(options.exit_threshold)  # an invalid threshold fails here, not in a worker
    elif config.own_thresholds() is None:
        print("exit_threshold: neither a flag nor the checkpoint sets one, so all layers run")
    files = outputs_of(options.input, options.output_dir)
    missing_files = {file: output for file, output in files.items() if not output.exists()}
    print(f"{len(files) - len(missing_files)} of {len(files)} files already exist")
    plans = {file: plan(file, options, output_fields(config, options.prefix)) for file in missing_files}
    tables = classified([piece for _, pieces in plans.values() for piece in pieces], options)
    for file, output in missing_files.items():
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary, rows_left = output.with_name(f"{output.name}.tmp"), pq.read_metadata(file).num_rows
        with pq.ParquetWriter(temporary, plans[file][0]) as writer:
            while rows_left > 0:
                writer.write_table(table := next(tables))
                rows_left -= len(table)
        if rows_left < 0:  # these rows would be missing in the next file
            raise RuntimeError(
                f"output: {-rows_left} rows more than '{output.name}' has; please report this with your version of Ray"
            )
        temporary.replace(output)


if __name__ == "__main__":
    main()
