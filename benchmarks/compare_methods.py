"""Train methods on data sets with several seeds, and print tables of their scores and layers saved.

    python benchmarks/compare_methods.py --datasets mrpc rte trec stsb \
        --methods plain static-3 deebert berxit dact-bert recommended \
        --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --exit_pooling mean --seeds 3 \
        --results results.jsonl --jobs 2 -- --bf16 --use_cpu

`--grid full` in place of `--datasets`, `--methods` and `--seeds` is everything: nine data sets, all methods with the
paper's and with the recommended head, models with one exit after several numbers of layers, five seeds. It is meant
for a GPU.

Every cell (data set, method, seed) is one run of `run_glue_exit.py` in a separate process, and one line in the results
file. The same command continues a stopped comparison: cells with a line of the same settings, in any precision, are
not run again. Flags after `--` are passed to every run and replace the settings below. `-` in a table means that the
method is not defined for the data set.

Methods are run as their papers describe them (`--recipe paper`). Besides them there are:

- `recommended`: the recommended recipe, and `METHOD+head`: a paper's method with the recommended head;
- `plain`: Transformers' classifier without exits;
- `limit-K`: the same with only the first K layers;
- `layerdrop`: the same, trained so that any number of layers can be kept;
- `static-K`: the first K layers with one exit, trained with the recommended head and learning rates; `static-K+paper`
  has BERxiT's.

`--exit_head NAME` gives all methods with exits, and `static-K`, the same head.

A line has the results on every split; on validation each half of the rows is answered with a threshold that was chosen
on the other half. `points` are such results for several losses allowed and numbers of layers (on other splits with
the threshold chosen on all validation rows), `other_curves` the trade-off curves of those splits.

`'berxit:{"fine_tuning": "joint"}'` is a method with other settings, and `plain@distilbert/distilbert-base-uncased` is
a method on another encoder. For depths by reconstruction, `'depth-adaptive:{"depth_source": "reconstruction"}'`, first
train a masked language model on each data set's texts (`depths_by_reconstruction.py --work_dir FOLDER/mrpc
--masked_lm_only`), and pass `--token_depths FOLDER`. `--traces FOLDER` also saves the traces of all runs, for
`ExitTrace.load`.
"""

import argparse
import functools
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comparison_tables import figures, is_regression, tables
from transformers import AutoConfig, BertConfig

from adaexit_hf import METHODS, ExitTrace, choose_within, tradeoff_curve
from adaexit_hf.data.glue import TASKS
from adaexit_hf.evaluation.cross_fit import half_curves, with_thresholds_of_other_half
from adaexit_hf.evaluation.metrics import compute_score
from adaexit_hf.evaluation.thresholds import best_point
from adaexit_hf.evaluation.trace import scored_predictions

JOB = Path(__file__).parents[1] / "examples" / "run_glue_exit.py"
CONFIGS = {name: model.config_class for name, model in METHODS.items()}
Flags = dict[str, list[str]]
Key = tuple[str, str, tuple[str, ...]]
PRECISION = ("--bf16", "--fp16", "--use_cpu")  # flags that are no settings of a method

RECIPE = """
    --num_train_epochs 3 --per_device_train_batch_size 16 --learning_rate 5e-5 --warmup_steps 0.1
    --train_sampling_strategy group_by_length --per_device_eval_batch_size 64
    --report_to none --save_strategy no --disable_tqdm true
"""
# Additional flags of single data sets. All seeds use the same rows for validation.
DATA_RECIPE = {
    "sst2": "--max_train_samples 10000",
    "imdb": "--max_train_samples 2500 --max_eval_samples 2500 --max_seq_length 256 --validation_fraction 0.1",
    "trec": "--validation_fraction 0.1",
}
# Where to find data sets that are not in GLUE. Two of them are loading scripts, which `datasets` does not run any
# more, so their parquet branch is used.
HUB = {
    "imdb": "--dataset_name stanfordnlp/imdb",
    "mr": "--dataset_name cornell-movie-review-data/rotten_tomatoes",
    "sick": "--dataset_name RobZamp/sick --dataset_revision refs/convert/parquet "
    "--text_columns sentence_A sentence_B --label_column relatedness_score",
    "trec": "--dataset_name CogComp/trec --dataset_revision refs/convert/parquet --label_column coarse_label",
}
DATASETS = sorted({*TASKS, *HUB})
# What --grid full runs, besides static-K.
GRID_DATASETS = ["mrpc", "rte", "sst2", "trec", "stsb", "sick", "cola", "mr", "imdb"]
GRID_SEEDS = 5
STATIC = {6: (2, 3, 4, 6), 12: (3, 4, 6, 8, 12)}  # by the number of layers of the encoder
# Losses allowed for which a line has results, relative to full depth.
MAX_DROPS = (0.005, 0.01, 0.02, 0.05)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what makes one CPU several times as fast as another


class Variant(NamedTuple):
    """How to run a method with `run_glue_exit.py`.

    Attributes:
        method: Value of `--method`; None for the recommended recipe.
        config: Value of `--method_config`.
        flags: Other flags.
        encoder: Another encoder than that of the comparison.
    """

    method: str | None
    config: dict[str, Any] = {}
    flags: str = ""
    encoder: str | None = None


# Methods that are not run with their default settings.
PAPER, RECOMMENDED = "--recipe paper", "--recipe recommended"
VARIANTS = {
    "plain": Variant("plain"),
    "layerdrop": Variant("plain", flags="--layer_drop 0.2"),
    "recommended": Variant(None),
    # At the encoder's learning rate the halting units hardly move, and all layers run.
    "dact-bert": Variant("dact-bert", {"halting_bias": 0, "ponder_cost": 0.1}, flags="--exits_learning_rate 1e-3"),
    "deebert": Variant("deebert", flags='--stage_overrides {"exits":{"learning_rate":1e-3}}'),
    # Ten times the learning rate of the teacher, as in the authors' script.
    "fastbert": Variant("fastbert", flags='--stage_overrides {"distil":{"learning_rate":5e-4}}'),
    "right-tool": Variant("right-tool", flags="--calibrate"),
    "berxit-joint": Variant("berxit", {"fine_tuning": "joint"}),
    "berxit-exits-1e-3": Variant("berxit", flags="--exits_learning_rate 1e-3"),
}


class Cell(NamedTuple):
    """One run.

    Attributes:
        dataset: Name of the data set.
        method: Name of the method, as in `--methods`.
        seed: Training seed.
        model: Name of the encoder, without its folder.
        settings: Flags that identify the run.
        places: Flags with the locations of data and encoder, which do not identify it.
    """

    dataset: str
    method: str
    seed: int
    model: str
    settings: tuple[str, ...]
    places: tuple[str, ...]

    @property
    def key(self) -> Key:
        """What identifies the run in the results file."""
        return key_of(self.dataset, self.model, self.settings)

    def __str__(self) -> str:
        return f"{self.dataset} {self.method} seed {self.seed}"


def key_of(dataset: str, model: str, settings: Sequence[str]) -> Key:
    """What identifies a run: not its precision and device, which change a score by less than another seed does.

    >>> key_of("trec", "some/encoder", ["--bf16", "--seed", "1"])
    ('trec', 'some/encoder', ('--seed', '1'))
    """
    flags = {name: values for name, values in grouped(settings).items() if name not in PRECISION}
    return dataset, model, tuple(token for name, values in flags.items() for token in (name, *values))


def grouped(tokens: Iterable[str]) -> Flags:
    """Flags with their values; a later flag replaces an earlier one of the same name.

    >>> grouped(["--bf16", "--seed=1", "--text_columns", "a", "b", "--seed", "2"])
    {'--bf16': [], '--seed': ['2'], '--text_columns': ['a', 'b']}
    """
    flags: Flags = {}
    name = None
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            flags[name] = [value] if equals else []
        elif name is None:
            raise ValueError(f"flags after --: got '{token}' first; start with a flag, e.g. -- --num_train_epochs 1")
        else:
            flags[name].append(token)
    return flags


def variant_of(name: str, exit_pooling: str | None = None, exit_head: str | None = None) -> Variant:
    """How to run a method, from its name in `--methods`.

    >>> variant_of("limit-3@some/encoder")
    Variant(method='plain', config={'num_hidden_layers': 3}, flags='', encoder='some/encoder')
    >>> variant_of("static-3", exit_pooling="mean").config
    {'num_hidden_layers': 3, 'exit_layers': [3], 'exit_pooling': 'mean'}
    >>> [variant_of(name).flags for name in ("static-3", "static-3+paper", "pabee", "pabee+head")]
    ['--recipe recommended', '--recipe paper', '--recipe paper', '--recipe recommended']
    >>> variant_of('berxit:{"fine_tuning": "joint"}', exit_pooling="mean", exit_head="dense").config
    {'exit_pooling': 'mean', 'exit_head': 'dense', 'fine_tuning': 'joint'}
    """
    row, _, config = name.partition(":")
    full, _, encoder = row.partition("@")
    base, _, addition = full.partition("+")
    fixed = re.fullmatch(r"(limit|static)-([1-9]\d*)", base)
    static = fixed is not None and fixed[1] == "static"
    if fixed:
        layers = int(fixed[2])
        first = {"num_hidden_layers": layers}
        variant = Variant("plain", first)
        if static:
            first |= {"exit_layers": [layers]}
            variant = Variant("berxit", first | {"fine_tuning": "joint"}) if addition else Variant(None, first)
    elif base in {*VARIANTS, *CONFIGS}:
        variant = VARIANTS.get(base, Variant(base))
    else:
        names = ", ".join(sorted({*VARIANTS, *CONFIGS}))
        raise ValueError(f"methods: got '{base}'; choose from {names}, limit-3, static-3")
    if addition and (variant.method in (None, "plain") and not static or addition != ("paper" if static else "head")):
        raise ValueError(
            f"methods: got '{full}'; write +head after a paper's method with exits, +paper after static-3"
        )
    with_exits = {}
    if variant.method != "plain":
        flags = variant.flags
        if addition == "head":  # the rates of the exits are then those of the recipe, in all stages
            flags = re.sub(r"--stage_overrides \S+", "", flags)
        recipe = RECOMMENDED if addition == "head" or variant.method is None else PAPER
        variant = variant._replace(flags=f"{recipe} {flags}".strip())
        with_exits = {"exit_pooling": exit_pooling, "exit_head": exit_head}
    settings = {key: value for key, value in with_exits.items() if value}
    return variant._replace(config=variant.config | settings | json.loads(config or "{}"), encoder=encoder or None)


def applies(variant: Variant, dataset: str) -> bool:
    """Whether the method, with these settings, is defined for the data set.

    >>> applies(variant_of("deebert"), "stsb"), applies(variant_of("berxit"), "stsb")
    (False, True)

    Raises:
        ValueError: The settings are invalid for every data set.
    """
    return variant.method == "plain" or _defined(
        variant.method or "berxit", json.dumps(variant.config), is_regression(dataset)
    )


@functools.cache  # a grid asks hundreds of times
def _defined(method: str, settings: str, regression: bool) -> bool:
    config = json.loads(settings)
    depths = [config["exit_layers"][-1]] if config.get("exit_layers") else []
    depths += [len(value) for value in config.values() if isinstance(value, list)]  # one number per exit
    encoder = BertConfig(num_hidden_layers=config.pop("num_hidden_layers", None) or (depths or [12])[0])

    def config_error(num_labels: int) -> Exception | None:
        try:
            CONFIGS[method](encoder, num_labels=num_labels, **config)
        except (TypeError, ValueError) as error:
            return error
        return None

    if regression and config_error(1) is None:
        return True
    error = config_error(2)
    if error is not None:
        raise ValueError(f"methods: {method} with {settings}: {error}")
    return not regression


def static_depths(depth: int) -> tuple[int, ...]:
    """The numbers of layers of the models with one exit that a full comparison has.

    >>> static_depths(6), static_depths(3)
    ((2, 3, 4, 6), (1, 2, 3))
    """
    return STATIC.get(depth, tuple(range(1, depth + 1)))


def by_reconstruction(variant: Variant) -> bool:
    """Whether the method needs a masked language model for the depths of tokens."""
    return variant.config.get("depth_source") == "reconstruction"


def places_of(dataset: str, model: str, root: str | None) -> tuple[str, ...]:
    """Flags with the locations of data and encoder, and with the names of the columns."""
    columns = ["--task_name", dataset] if dataset in TASKS else ["--text_columns", "text"]
    hub = HUB.get(dataset, "").split()
    folder = ["--dataset_name", str(Path(root, dataset if hub else "glue"))] if root else hub
    return ("--model_name_or_path", model, *columns, *folder)


def cells_of(options: argparse.Namespace, run_flags: Sequence[str] = ()) -> list[Cell]:
    """All runs of the comparison, seed by seed, so that a stopped comparison has results for every method."""
    cells = []
    for seed, dataset, name in itertools.product(range(options.seeds), options.datasets, options.methods):
        variant = variant_of(name, options.exit_pooling, options.exit_head)
        if applies(variant, dataset):
            flags = grouped(
                [*RECIPE.split(), *DATA_RECIPE.get(dataset, "").split(), *variant.flags.split(), *run_flags]
            )
            flags |= {"--seed": [str(seed)]} | ({"--method": [variant.method]} if variant.method else {})
            if variant.config:
                flags["--method_config"] = [json.dumps(variant.config, sort_keys=True)]
            settings = tuple(token for flag in sorted(flags) for token in (flag, *flags[flag]))
            encoder = variant.encoder or options.model_name_or_path
            places = places_of(dataset, encoder, options.data_root)
            if by_reconstruction(variant):
                places += ("--token_depths_model", str(Path(options.token_depths, dataset, "masked-lm")))
            if options.traces:
                settings_hash = hashlib.sha256(" ".join((encoder, *settings)).encode()).hexdigest()[:8]
                run_name = re.sub(r"[^\w.-]+", "-", f"{dataset} {name} {seed} {settings_hash}")
                places += ("--save_traces", str(Path(options.traces, run_name)))
            model = "/".join(Path(encoder).parts[-2:])
            cells.append(Cell(dataset, name, seed, model, settings, places))
    return cells


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a results file, with a warning for incomplete ones; none if there is no file."""
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            warnings.warn(f"{path}, line {number}: incomplete line, ignored; its cell will run again", stacklevel=2)


def read_results(path: Path) -> dict[Key, dict[str, Any]]:
    """The lines of the results file, by the keys of their runs."""
    return {key_of(row["dataset"], row["model"], row["settings"]): row for row in whole_lines(path)}


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one line and wait until it is on the disk; an incomplete line before it stays a separate line."""
    with path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        start = "\n" if file.read(1) not in (b"", b"\n") else ""
        file.write((start + json.dumps(row) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def machine(threads: str) -> dict[str, Any]:
    """Processor with those of its instructions that matter for speed, threads and GPU."""
    path = Path("/proc/cpuinfo")
    info = path.read_text() if path.exists() else ""
    processor, flags = (re.search(rf"^{name}\s*: (.+)$", info, flags=re.MULTILINE) for name in ("model name", "flags"))
    return {
        "processor": processor[1] if processor else platform.processor(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flags and flag in flags[1].split()],
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def points_of(traces: dict[str, ExitTrace], metric: str) -> dict[str, list[dict[str, Any]]]:
    """Score and layers by split, for several losses allowed and for every whole number of mean layers.

    On the first split, the thresholds of each half are chosen on its other half; on other splits, on the first split.
    A point is left out where no threshold runs so few layers, or where the metric is not defined.
    """
    (first, validation), *others = traces.items()
    points: dict[str, list[dict[str, Any]]] = {split: [] for split in traces}
    try:
        curve, halves = tradeoff_curve(validation, metric), half_curves(validation, metric)
    except ValueError:
        return points
    budgets = [{"max_layers": layers} for layers in range(1, validation.depth + 1)]
    for rule in [{"max_drop": drop} for drop in MAX_DROPS] + budgets:
        choose = functools.partial(choose_within if "max_layers" in rule else best_point, **rule)
        try:
            honest = with_thresholds_of_other_half(validation, halves, [metric], choose)
            chosen = choose(curve).threshold
        except ValueError:  # no threshold runs so few layers
            continue
        points[first].append(
            rule | {"score": honest.scores[metric], "mean_layers": honest.mean_layers, "thresholds": honest.thresholds}
        )
        for split, trace in others:
            logits, layers = trace.at(chosen)
            labels = trace.known_labels()
            score = compute_score(metric, predictions=scored_predictions(logits, labels), references=labels)
            points[split].append(
                rule | {"score": score, "mean_layers": layers.double().mean().item(), "thresholds": [chosen]}
            )
    return points


class Run:
    """A running cell: its process, in a process group of its own, and the folder it writes to."""

    def __init__(self, cell: Cell, work_dir: Path | None, threads: str) -> None:
        self.cell, self.threads, self.start = cell, threads, time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="cell-", dir=work_dir))
        places = grouped(cell.places)
        self.traces = Path(*places.get("--save_traces", [self.folder / "traces"]))
        command = [sys.executable, str(JOB), *cell.settings, *cell.places, "--output_dir", str(self.folder / "out")]
        command += [] if "--save_traces" in places else ["--save_traces", str(self.traces)]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def row(self) -> dict[str, Any] | None:
        """The line of the finished run, or None if it failed."""
        files = [self.folder / "out" / name for name in ("metrics.json", "curve.json")]
        if self.process.returncode != 0 or not all(path.exists() for path in files):
            return None
        summary, curve = json.loads(files[0].read_text()), json.loads(files[1].read_text())
        results = summary["results"]
        metric = next(iter(next(iter(results.values()))["full_depth"]))
        traces = {split: ExitTrace.load(self.traces / f"{split}.safetensors") for split in results}
        several = len(next(iter(traces.values())).exit_layers) > 1
        return self.cell._asdict() | {
            "metric": metric,
            "results": results,
            "curve": curve,
            "other_curves": {
                split: [point[:4] for point in tradeoff_curve(trace, metric)]
                for split, trace in list(traces.items())[1:]
                if several
            },
            "points": points_of(traces, metric) if several else {},
            "training": {name: summary["training"][name] for name in ("seconds", "optimizer_steps")},
            "bytes": sum(path.stat().st_size for path in (self.folder / "out").glob("*.safetensors")),
            "seconds": round(time.monotonic() - self.start, 1),
            "versions": {name: version(name) for name in ("torch", "transformers", "adaexit_hf")},
            "machine": machine(self.threads),
        }

    def close(self) -> None:
        """Stop the process if it still runs, and delete the folder."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.folder)


def run_all(cells: Sequence[Cell], results: Path, jobs: int = 1, work_dir: Path | None = None) -> set[Key]:
    """Run cells, `jobs` at a time, and return the keys of those that failed."""
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    waiting, running, failed = list(cells), [], set()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Run(waiting.pop(0), work_dir, threads))
            time.sleep(0.05)
            for run in [run for run in running if run.process.poll() is not None]:
                summary = finish(run, results)
                if not summary:
                    failed.add(run.cell.key)
                running.remove(run)
                run.close()
                print(f"{run.cell}: {summary or 'failed'}; {len(waiting) + len(running)} left", flush=True)
    finally:
        for run in running:
            run.close()
    return failed


def finish(run: Run, results: Path) -> str:
    """Write the line of a finished run and return a summary.

    Of a failed run the log is kept and its end is printed, and the summary is empty.
    """
    log = results.with_name(re.sub(r"[^\w.-]+", "-", f"{results.stem} {run.cell}") + ".log")
    row = run.row()
    if row is None:
        shutil.copy(run.folder / "log", log)
        print(*log.read_text(errors="replace").splitlines()[-15:], f"complete log: {log}", sep="\n", file=sys.stderr)
        return ""
    append_line(results, row)
    log.unlink(missing_ok=True)  # of an earlier attempt
    validation = figures(row)["validation"]
    scores = f"{row['metric']} {validation.full:.4f} -> {validation.exits:.4f} at layer {validation.layer:.2f}"
    return f"{scores}, {row['seconds']:.0f} s"


def grid_methods(depth: int) -> list[str]:
    """All methods of a full comparison on an encoder with this number of layers, those that matter most first.

    >>> grid_methods(6)[:6]
    ['plain', 'recommended', 'static-2', 'static-3', 'static-4', 'static-6']
    """
    static = [f"static-{layers}" for layers in static_depths(depth)]
    heads = [f"{method}+head" for method in CONFIGS]
    return ["plain", "recommended", *static, *CONFIGS, *heads]


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and the flags after `--` for every run."""
    own_arguments, run_flags = list(arguments), []
    if "--" in own_arguments:
        separator = own_arguments.index("--")
        own_arguments, run_flags = own_arguments[:separator], own_arguments[separator + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=["full"], help="Run everything; replaces the next three options.")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, metavar="NAME", help=str(DATASETS))
    parser.add_argument("--methods", nargs="+", help="Methods to compare, the rows of the tables.")
    parser.add_argument("--seeds", type=int, help="Number of seeds: 0, 1, 2, ... Default: 3.")
    parser.add_argument("--model_name_or_path", required=True, help="Hub name or folder of the encoder.")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines file with one line per finished run.")
    parser.add_argument("--data_root", help="Local data: a folder with glue/ (like nyu-mll/glue) and trec/, mr/, ...")
    parser.add_argument("--token_depths", help="For depths by reconstruction: folder with mrpc/masked-lm/, ...")
    parser.add_argument("--traces", help="Folder to save the traces of all runs.")
    parser.add_argument("--exit_pooling", choices=["first", "mean"], help="Pooling of every method with exits.")
    parser.add_argument("--exit_head", help="Head of every method with exits, in place of that of its recipe.")
    parser.add_argument("--jobs", type=int, default=1, help="Number of simultaneous runs.")
    parser.add_argument(
        "--work_dir", type=Path, help="Folder for the models of unfinished runs. Default: a temporary folder."
    )
    parser.add_argument("--table_only", action="store_true", help="Print the tables without running anything.")
    options = parser.parse_args(own_arguments)
    reserved_flags = {
        "--method",
        "--method_config",
        "--seed",
        "--output_dir",
        "--task_name",
        "--dataset_name",
        "--save_traces",
    }
    given = [name for name in ("datasets", "methods", "seeds") if getattr(options, name) is not None]
    if options.grid and given:
        parser.error(
            f"{given[0]}: got {getattr(options, given[0])} with --grid {options.grid}, which sets it; leave it out"
        )
    if options.grid:
        depth = AutoConfig.from_pretrained(options.model_name_or_path).num_hidden_layers
        options.datasets, options.methods, options.seeds = GRID_DATASETS, grid_methods(depth), GRID_SEEDS
    if not (options.datasets and options.methods):
        parser.error("datasets, methods: missing; pass both, or --grid full")
    options.seeds = 3 if options.seeds is None else options.seeds
    try:
        for name, dataset in itertools.product(options.methods, options.datasets):
            variant = variant_of(name, options.exit_pooling, options.exit_head)
            applies(variant, dataset)
            if by_reconstruction(variant) and not options.token_depths:
                raise ValueError(f"token_depths: missing; '{name}' needs the folder with the masked language models")
        not_allowed = reserved_flags & set(grouped(run_flags))
        if not_allowed:
            names = ", ".join(sorted(not_allowed))
            raise ValueError(f"flags after --: got {names}, which this script sets itself; leave them out")
        if min(options.seeds, options.jobs) < 1:
            raise ValueError(f"seeds, jobs: got {options.seeds}, {options.jobs}; pass 1 or more")
    except ValueError as error:
        parser.error(str(error))
    return options, run_flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables.

    Returns:
        0 for success, 1 if a run failed, 130 if stopped.
    """
    options, run_flags = parse(sys.argv[1:] if arguments is None else arguments)
    cells, rows = cells_of(options, run_flags), read_results(options.results)
    missing = {} if options.table_only else {cell.key: cell for cell in cells if cell.key not in rows}
    print(f"{len(cells)} cells, {len(missing)} to run", flush=True)
    for folder in filter(None, (options.results.parent, options.work_dir)):
        folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGTERM too, since background jobs of a shell ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        failed = run_all(list(missing.values()), options.results, options.jobs, options.work_dir)
    except KeyboardInterrupt:
        print("stopped; run the same command to continue", file=sys.stderr)
        return 130
    rows = read_results(options.results) if missing else rows
    keys: dict[tuple[str, str], list[Key]] = {key: [] for key in itertools.product(options.datasets, options.methods)}
    for cell in cells:
        keys[cell.dataset, cell.method].append(cell.key)
    print(tables(keys, rows, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
