"""A trace is checked when it is made, kept in one file, and collected without the data set in memory."""

import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import METHODS, Row, encoder_config, new_model, texts
from helpers.traces import NAN, by_hand
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertModel

from adaexit_hf import ExitTrace, collect_trace, predict, tradeoff_curve
from adaexit_hf.evaluation import collect
from adaexit_hf.evaluation.bootstrap import bootstrap_seeds
from adaexit_hf.evaluation.flops import flops_per_exit
from adaexit_hf.evaluation.later_answers import had_they_gone_on
from adaexit_hf.evaluation.thresholds import spread_thresholds
from adaexit_hf.evaluation.trace import check_same_data
from adaexit_hf.interpretation.attribution import explain, layer_conductance
from adaexit_hf.interpretation.probes import attention_entropy
from adaexit_hf.models import padded_batches
from adaexit_hf.models.padded_batches import stream_rows


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(-1.0), other.nan_to_num(-1.0))
    return bool(one == other)


def check_equal(one: ExitTrace, other: ExitTrace) -> None:
    assert all(same(value, vars(other)[name]) for name, value in vars(one).items())


EVERYTHING = {
    "criterion": "confidence",
    "bounds": (0.0, 1.0),
    "method": "berxit",
    "label_names": ("bad", "good"),
    "lengths": torch.tensor([5, 9]),
    "flops": torch.tensor([[10, 20, 40], [30, 60, 120]]),
    "about": {"dataset": "mrpc", "seed": 1, "nested": [None, True, 0.5]},
}
KEPT = [
    pytest.param(by_hand(), id="least"),
    pytest.param(by_hand(**EVERYTHING), id="everything"),
    pytest.param(by_hand(labels=None), id="no labels"),
    pytest.param(by_hand(logits=torch.rand(2, 3, 1), labels=torch.tensor([0.5, -1.0])), id="regression"),
    pytest.param(by_hand(**EVERYTHING).take(torch.tensor([1, 1, 0])), id="taken"),
    pytest.param(by_hand(logits=torch.rand(3, 2, 2).transpose(0, 1)), id="not contiguous"),
]


@pytest.mark.parametrize("trace", KEPT)
def test_a_saved_trace_is_loaded_unchanged(trace: ExitTrace, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "trace.safetensors"
    trace.save(path)
    check_equal(trace, ExitTrace.load(str(path)))
    assert torch.equal(load_file(path)["logits"], trace.logits)  # any reader has the tensors


def test_a_trace_saved_before_settings_were_stored_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    trace = by_hand(**EVERYTHING)
    trace.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    facts = json.loads(metadata["adaexit_hf_trace"])
    del facts["settings"]
    save_file(load_file(path), path, metadata=metadata | {"adaexit_hf_trace": json.dumps(facts)})
    check_equal(trace, ExitTrace.load(path))


@pytest.mark.parametrize("name", METHODS)
def test_the_trace_of_every_method_can_be_kept(name: str, tmp_path: Path) -> None:
    model = new_model(name)
    trace = collect_trace(model, texts(5), progress=False, count_flops=True, about={"seed": 3})
    trace.save(tmp_path / "trace")
    loaded = ExitTrace.load(tmp_path / "trace")
    check_equal(trace, loaded)
    assert (loaded.method, loaded.criterion) == (name, model.config.exit_criterion)
    assert (loaded.bounds, loaded.about) == (model.config.threshold_bounds, {"seed": 3})
    assert loaded.label_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert loaded.lengths is not None and loaded.lengths.tolist() == [len(row["input_ids"]) for row in texts(5)]


def test_facts_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(TypeError, match="about: Object of type Tensor is not JSON serializable; keep to dicts, lists"):
        by_hand(about={"loss": torch.tensor(1.0)}).save("never")


def test_files_without_a_trace_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ExitTrace.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(
        ValueError, match=r"path: '.*text' is not a safetensors file \(.*\); pass a file that ExitTrace.save wrote"
    ):
        ExitTrace.load(tmp_path / "text")
    save_file({"logits": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(
        ValueError, match="path: '.*weights' contains tensors, but no trace; pass a file that ExitTrace.s"
    ):
        ExitTrace.load(tmp_path / "weights")


IMPOSSIBLE = [
    pytest.param({"logits": torch.zeros(0, 3, 2)}, r"logits: got shape \(0, 3, 2\); a trace needs at", id="empty"),
    pytest.param({"logits": torch.zeros(2, 3)}, r"logits: got shape \(2, 3\); a trace needs at least", id="no labels"),
    pytest.param({"scores": torch.zeros(2, 2)}, r"scores: got shape \(2, 2\); 2 samples with 3 exits", id="scores"),
    pytest.param({"labels": torch.zeros(3)}, r"labels: got shape \(3,\); 2 samples with 3 exits need", id="labels"),
    pytest.param({"labels": torch.tensor([0, 7])}, "labels: got 7 for sample 1; pass class indices fr", id="label"),
    pytest.param({"labels": torch.tensor([NAN, 1])}, "labels: got nan for sample 0; pass class", id="nan label"),
    pytest.param({"exit_layers": (1, 2)}, r"exit_layers: got \(1, 2\); pass 3 ascending layer", id="few layers"),
    pytest.param({"exit_layers": (0, 1, 2)}, r"exit_layers: got \(0, 1, 2\); pass 3 ascending", id="layer 0"),
    pytest.param({"exit_layers": (3, 2, 6)}, r"exit_layers: got \(3, 2, 6\); pass 3 ascending", id="descending"),
    pytest.param({"ready": "=="}, "ready: got '=='; choose one of 'lt', 'le', 'gt', 'ge'", id="ready"),
    pytest.param({"label_names": ("a",)}, "label_names: got 1 names for 2 labels; pass one per label", id="names"),
]


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE)
def test_tensors_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_hand(**changes)


OUTSIDE = [
    pytest.param(1.5, r"threshold: got 1.5; confidence takes numbers in \[0, 1\], or None for full", id="above"),
    pytest.param(NAN, "threshold: got nan; confidence takes numbers", id="nan"),
    pytest.param([0.5, -0.1, 0.5], "threshold: got -0.1; confidence takes numbers", id="one below"),
    pytest.param([0.5, 0.5], "threshold: got 2 numbers for 3 exits; pass one number, or one per exit", id="too few"),
]


@pytest.mark.parametrize(("threshold", "message"), OUTSIDE)
def test_thresholds_out_of_range_are_refused(threshold: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_hand(**EVERYTHING).exits_at(threshold)


@pytest.mark.parametrize("value", ["x", True, [0.5, "x", 0.5], np.array(True)], ids=["str", "bool", "list", "array"])
def test_thresholds_of_the_wrong_type_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"threshold: got .*; confidence takes numbers in \[0, 1\], or None for"):
        by_hand(**EVERYTHING).exits_at(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, NAN])
def test_patience_without_bounds_is_finite(value: float) -> None:
    trace = by_hand(ready="ge", criterion="patience")
    with pytest.raises(ValueError, match=r"threshold: got .*(inf|nan); patience takes whole numbers in"):
        trace.exits_at(value)


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (np.array(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (np.array([0.5, 0.25, 0.0]), [0.5, 0.25, 0.0]),
        (torch.tensor([0.5, 0.25, 0.0]), [0.5, 0.25, 0.0]),
    ],
    ids=["array", "number", "tensor", "one per exit", "tensor of one per exit"],
)
def test_thresholds_may_be_those_of_numpy_and_pytorch(value: Any, same: Any) -> None:
    trace = by_hand(**EVERYTHING)
    assert trace.exits_at(value).tolist() == trace.exits_at(same).tolist()
    assert by_hand(**EVERYTHING | {"criterion": "patience"}).exits_at(np.array(0)).tolist() == [2, 2]


def test_thresholds_are_on_the_device_of_the_scores() -> None:
    trace = by_hand(logits=torch.zeros(2, 3, 2, device="meta"), scores=torch.zeros(2, 3, device="meta"), labels=None)
    for threshold in (0.5, None):
        assert {each.device.type for each in trace.at(threshold)} == {"meta"}
        later = had_they_gone_on(trace, threshold)
        assert {each.device.type for each in later if isinstance(each, Tensor)} == {"meta"}


def test_patience_is_whole() -> None:
    trace = by_hand(ready="ge", criterion="patience", bounds=(1.0, 3.0), scores=torch.tensor([[0, 1, 2], [0, 0, 1]]))
    assert trace.exits_at(1).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"threshold: got 1.5; patience takes whole numbers in \[1, 3\], or None"):
        trace.exits_at(1.5)


def test_whole_scores_do_not_make_whole_thresholds() -> None:
    assert by_hand(scores=torch.tensor([[1, 2, 3], [2, 1, 3]])).exits_at(1.5).tolist() == [1, 0]


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_bad_batch_sizes_are_refused(size: Any) -> None:
    model = new_model("deebert")
    for call in (collect_trace, attention_entropy, explain):
        with pytest.raises(
            ValueError, match=f"batch_size: got {size}; pass a whole number from 1, e.g. batch_size=32"
        ):
            call(model, texts(3), batch_size=size, progress=False)
    with pytest.raises(ValueError, match=f"batch_size: got {size}"):
        model.calibrate_temperatures(texts(3), batch_size=size)


@pytest.mark.filterwarnings("ignore:. of 24 attributions:RuntimeWarning")  # so few steps
def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    model, rows, two = new_model("deebert").eval(), texts(3), np.int64(2)
    trace = collect_trace(model, rows, batch_size=two, progress=False)
    assert torch.equal(trace.logits, collect_trace(model, rows, batch_size=2, progress=False).logits)
    assert len(explain(model, rows, batch_size=two, steps=np.int64(8), progress=False)) == 3
    assert len(predict(model, rows, batch_tokens=np.int64(64), max_memory=np.int64(10**9)).logits) == 3
    assert torch.equal(flops_per_exit(model, np.int64(5)), flops_per_exit(model, 5))
    assert bootstrap_seeds([0.5, 0.75], resamples=np.int64(10)).value == 0.625


@pytest.mark.parametrize("call", [collect_trace, predict, explain, layer_conductance, attention_entropy])
def test_a_model_without_exits_is_refused(call: Any) -> None:
    with pytest.raises(
        TypeError, match="model: got BertModel, which has no exits; pass one that AutoModelForSequence"
    ):
        call(BertModel(encoder_config()), texts(3))


def test_patience_0_is_full_depth_as_in_a_config() -> None:
    trace = collect_trace(new_model("pabee"), texts(4), progress=False)
    assert trace.exits_at(0.0).tolist() == [3] * 4


@pytest.mark.parametrize("name", METHODS)
def test_spread_thresholds_are_those_of_the_config(name: str) -> None:
    model = new_model(name)
    thresholds = spread_thresholds(collect_trace(model, texts(20), progress=False))
    assert thresholds == sorted(set(thresholds))
    assert all(model.config.thresholds(threshold) for threshold in thresholds)


OTHER_DATA = [
    pytest.param({"take": [0]}, "traces: trace 1 has 1 samples, trace 0 has 2; collect all of them on", id="samples"),
    pytest.param({"about": {"dataset": "rte"}}, "traces: trace 1 has the data set 'rte', trace 0", id="name"),
    pytest.param({"logits": torch.zeros(2, 3, 4)}, "traces: trace 1 has 4 labels, trace 0 has 2", id="label count"),
    pytest.param({"label_names": ("a", "b")}, r"traces: trace 1 has the classes \('a', 'b'\), trace", id="classes"),
    pytest.param({"labels": torch.tensor([1, 1])}, "traces: trace 1 has other labels than trace 0", id="labels"),
    pytest.param({"labels": None}, "traces: trace 1 has other labels than trace 0", id="unlabelled"),
]


@pytest.mark.parametrize(("changes", "message"), OTHER_DATA)
def test_traces_of_different_data_cannot_be_compared(changes: dict[str, Any], message: str) -> None:
    taken = changes.get("take", [0, 1])
    other = by_hand(**{key: value for key, value in changes.items() if key != "take"}).take(torch.tensor(taken))
    with pytest.raises(ValueError, match=message):
        check_same_data([by_hand(label_names=("no", "yes"), about={"dataset": "mrpc"}), other])


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("0", "1"), None])
def test_made_up_names_of_classes_do_not_differ_from_others(names: Any) -> None:
    real = by_hand(label_names=("no", "yes"))
    check_same_data([by_hand(label_names=names), real, by_hand(label_names=names)])
    with pytest.raises(ValueError, match="trace 2 has the classes .'yes', 'no'., trace 1 has .'no', 'yes'."):
        check_same_data([by_hand(label_names=names), real, by_hand(label_names=("yes", "no"))])


def test_other_exits_on_the_same_data_may_stand_side_by_side() -> None:
    other = ExitTrace(torch.zeros(2, 1, 2), torch.zeros(2, 1), torch.tensor([0, 1]), (12,), "lt")
    check_same_data([by_hand(), other])
    with pytest.raises(ValueError, match="traces: got none; pass at least one"):
        check_same_data([])


def test_rows_are_read_once_one_window_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padded_batches, "BLOCK", 8)  # of rows that are tokenized together
    model, read, ran, ahead = new_model("deebert"), 0, 0, []

    def rows() -> Iterator[Row]:
        nonlocal read
        for row in texts(400):
            read += 1
            yield row

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal ran
        ran += len(output)
        ahead.append(read - ran)

    model.exits[0].register_forward_hook(count)
    trace = collect_trace(model, rows(), batch_size=2, progress=False)
    assert trace.logits.shape == (400, 4, 3)
    assert (read, ran, max(ahead)) == (400, 400, 62)  # windows of 32 batches, of which the first has run


def test_rows_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Watched(dict[str, Any]):
        __hash__ = object.__hash__  # type: ignore[assignment]
        __eq__ = object.__eq__

    def stream(*arguments: Any) -> Iterator[Row]:
        nonlocal most
        for row in stream_rows(*arguments):
            alive.add(watched := Watched(row))
            most = max(most, len(alive))
            yield watched

    monkeypatch.setattr(collect, "stream_rows", stream)
    collect_trace(new_model("deebert"), texts(400), batch_size=2, progress=False)
    assert 64 <= most <= 130  # of 400: a window of 32 batches, and the one before


def test_the_size_of_windows_changes_nothing() -> None:
    model, rows = new_model("right-tool"), texts(150)
    one, many = (collect_trace(model, rows, batch_size=size, progress=False) for size in (50, 1))
    torch.testing.assert_close(one.logits, many.logits)
    assert one.labels is not None and many.labels is not None and torch.equal(one.labels, many.labels)


def test_pads_do_not_count_as_length() -> None:
    rows = [
        {"input_ids": [1, 5, 0, 0], "attention_mask": [1, 1, 0, 0]},
        {"input_ids": [0, 1], "attention_mask": [0, 1]},
    ]
    trace = collect_trace(new_model("deebert"), rows, progress=False, count_flops=True)
    assert trace.lengths is not None and trace.lengths.tolist() == [2, 1]
    unpadded = collect_trace(new_model("deebert"), [{"input_ids": [1, 5]}, {"input_ids": [1]}], count_flops=True)
    assert trace.flops is not None and unpadded.flops is not None and torch.equal(trace.flops, unpadded.flops)


def test_a_part_of_a_trace() -> None:
    part = by_hand(**EVERYTHING).take(torch.tensor([1]))
    assert part.labels is not None and part.labels.tolist() == [1]
    assert part.flops is not None and part.flops.tolist() == [[30, 60, 120]]
    assert tradeoff_curve(part, "accuracy", [])[0].flops == 120.0
