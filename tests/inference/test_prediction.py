"""`predict`: many texts layer by layer give what one text at a time gives, whatever they are and come from."""

import warnings
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.predictions import rows_of, silent
from helpers.scripted import naming, scripted
from helpers.tiny import (
    CLASSES,
    EAGER_ONLY,
    FAMILIES,
    READS_TOKENS,
    VARIANTS,
    build,
    encoder_config,
    inputs_of,
    predicted,
    thresholds_between,
    trace_of,
)
from helpers.words import new_tokenizer
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import adaexit_hf.models.padded_batches
from adaexit_hf import DatasetError, Prediction, predict, predict_stream
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.early_exit_loop import InFlight, repacked, rows_per_batch, run_early_exit, trimmed
from adaexit_hf.models.padded_batches import padded_batch

Model = EarlyExitForSequenceClassification
WORDS = [f"w{number}" for number in range(5, 64)]


def one_at_a_time(model: Model, rows: list[dict[str, list[int]]], **kwargs: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        outputs = [model(**{name: torch.tensor([value]) for name, value in row.items()}, **kwargs) for row in rows]
    return torch.cat([each.logits for each in outputs]), torch.cat([each.exit_layer for each in outputs])


def splitting_threshold(model: Model, rows: list[dict[str, list[int]]]) -> float:
    """In the middle of the widest gap between early scores."""
    trace = trace_of(model, padded_batch(rows, model.config.encoder_config))
    scores = trace.exit_scores[:, :-1].unique()
    if torch.equal(scores, scores.round()):
        return 1.0
    middle = scores[len(scores) // 4 : -len(scores) // 4]
    place = middle.diff().argmax()
    return float((middle[place] + middle[place + 1]) / 2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return new_tokenizer(model_max_length=None)


# The answers ---------------------------------------------------------------------------------------------------------


# With one row in each batch nothing is packed: only exits that read all tokens could tell.
@pytest.mark.parametrize(
    ("variant", "batch_tokens"),
    [*((variant, 60) for variant in VARIANTS), *((variant, 1) for variant in ("deebert", *READS_TOKENS))],
)
def test_equals_one_text_at_a_time(variant: str, batch_tokens: int) -> None:
    model, rows = build(variant), rows_of()
    threshold = splitting_threshold(model, rows)
    found = silent(model, rows, exit_threshold=threshold, batch_tokens=batch_tokens)
    logits, exit_layer = one_at_a_time(model, rows, exit_threshold=threshold)
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.exit_layer, exit_layer)
    assert len(exit_layer.unique()) > 1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["deebert", "fastbert", "depth-adaptive"])
def test_equals_one_text_at_a_time_on_every_family(method: str, name: str) -> None:
    model, rows = build(method, name), rows_of(20)
    threshold = splitting_threshold(model, rows)
    found = silent(model, rows, exit_threshold=threshold, batch_tokens=60)
    logits, exit_layer = one_at_a_time(model, rows, exit_threshold=threshold)
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.exit_layer, exit_layer)


@pytest.mark.parametrize("method", CLASSES)
def test_full_depth_is_the_last_exit_of_the_trace(method: str) -> None:
    model, rows = build(method), rows_of()
    found = silent(model, rows, early_exit=False)
    logits, _ = one_at_a_time(model, rows, early_exit=False)
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
    assert found.exit_layer.unique().tolist() == [3]


def test_score_is_that_of_the_exit_that_was_taken() -> None:
    model, rows = build("deebert"), rows_of()
    threshold = splitting_threshold(model, rows)
    found = silent(model, rows, exit_threshold=threshold)
    early = found.exit_layer < 3
    assert (found.exit_score[early] < threshold).all()
    assert (found.exit_score[~early] > threshold).any()


def test_the_configs_threshold_and_temperatures_count() -> None:
    model, rows = build("deebert"), rows_of()
    threshold = splitting_threshold(model, rows)
    model.config.exit_temperatures = [0.5, 2.0, 3.0]
    model.config.exit_threshold = threshold
    found = silent(model, rows)
    logits, exit_layer = one_at_a_time(model, rows)
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.exit_layer, exit_layer)


@pytest.mark.parametrize(("leaves_at", "layers"), [(0, 1), (2, 3)])
def test_all_rows_may_leave_together(leaves_at: int, layers: int) -> None:
    answers = torch.zeros(8, 3, 3)
    answers[:, leaves_at:] = naming([[1] * (3 - leaves_at)] * 8) * 50
    model = scripted("deebert", answers)
    found = silent(model, [{"input_ids": [number, number]} for number in range(8)], exit_threshold=0.5)
    assert found.exit_layer.tolist() == [layers] * 8


def test_one_text_is_predicted() -> None:
    model, row = build("deebert"), {"input_ids": [7, 8]}
    found = silent(model, [row], exit_threshold=1.09)
    logits, exit_layer = one_at_a_time(model, [row], exit_threshold=1.09)
    torch.testing.assert_close((found.logits, found.exit_layer), (logits, exit_layer))


def test_exits_may_be_few() -> None:
    model, rows = build("right-tool", exit_layers=[2, 3]), rows_of()
    threshold = splitting_threshold(model, rows)
    found = silent(model, rows, exit_threshold=threshold)
    assert torch.equal(found.exit_layer, one_at_a_time(model, rows, exit_threshold=threshold)[1])


def test_rows_of_nan_go_on_and_are_reported() -> None:
    answers = naming([[1, 1, 1]] * 4) * 50
    answers[2] = torch.nan
    model = scripted("deebert", answers)
    rows = [{"input_ids": [number, number]} for number in range(4)]
    with pytest.warns(RuntimeWarning, match="3 exits gave NaN or infinite logits"):
        found = silent(model, rows, exit_threshold=0.5)
    assert found.exit_layer.tolist() == [1, 1, 3, 1]


# How it gets there ---------------------------------------------------------------------------------------------------


def test_texts_that_stay_are_packed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = torch.zeros(32, 3, 3)
    answers[::2] = naming([[1, 1, 1]] * 16) * 50  # every other text leaves at once
    model = scripted("deebert", answers)
    shapes: list[tuple[int, tuple[int, int]]] = []
    layer_step = model.layer_step

    def noted(index: int, layer: Any, hidden: Tensor, *args: Any) -> Any:
        shapes.append((index + 1, tuple(hidden.shape[:2])))
        return layer_step(index, layer, hidden, *args)

    monkeypatch.setattr(model, "layer_step", noted)
    silent(model, [{"input_ids": [number, 5]} for number in range(32)], exit_threshold=0.5, batch_tokens=16)
    assert [shape for number, shape in shapes if number == 1] == [(8, 2)] * 4
    assert [shape for number, shape in shapes if number > 1] == [(8, 2)] * 4


def test_a_text_of_pads_alone_does_not_stretch_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build("deebert"), []
    rows = [{"input_ids": [5] * 20, "attention_mask": [0] * 20}] + [{"input_ids": [5] * 12}] * 50
    layer_step = model.layer_step

    def noted(index: int, layer: Any, hidden: Tensor, *args: Any) -> Any:
        tokens.append(hidden.shape[0] * hidden.shape[1])
        return layer_step(index, layer, hidden, *args)

    monkeypatch.setattr(model, "layer_step", noted)
    silent(model, rows, exit_threshold=0.0, batch_tokens=64)
    assert max(tokens) <= 64


def flight_of(model: Model, inputs: dict[str, Tensor]) -> InFlight:
    inputs, extents = trimmed(dict(inputs))
    return InFlight.of(*model.embed(inputs), extents)


def test_columns_that_only_others_needed_are_cropped() -> None:
    model = build("deebert")
    (left,) = repacked(model.encoder, [(flight_of(model, padded_inputs([3, 9, 3])), [0, 2])], 0)
    assert left.shape == (2, 3)
    assert left.context.padding is None
    assert left.context.masks["mask"] is None


def test_a_hole_in_the_mask_survives_cropping() -> None:
    model = build("deebert")
    inputs = padded_inputs([4, 9, 5])
    inputs["attention_mask"][0, 1] = 0
    with torch.no_grad():
        full = model(**inputs, early_exit=False)
        (kept,) = repacked(model.encoder, [(flight_of(model, inputs), [0, 2])], 0)
        answers = run_early_exit(model, [kept._replace(rows=torch.tensor([0, 1]))], None, None)
    assert kept.shape == (2, 5)
    torch.testing.assert_close(answers.logits, full.logits[[0, 2]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_joined_batches_give_the_states_of_each(name: str) -> None:
    model = build("depth-adaptive", name)
    lengths = [9, 8, 8, 6, 6, 6, 5, 3]
    batches = [padded_inputs(lengths[place : place + 2]) for place in range(0, 8, 2)]
    with torch.no_grad():
        flights = [flight_of(model, batch) for batch in batches]
        flights = [flight._replace(rows=flight.rows + 2 * place) for place, flight in enumerate(flights)]
        stay = [[row - 2 * place for row in rows] for place, rows in enumerate([[0, 1], [3], [4], [6, 7]])]
        together = repacked(model.encoder, list(zip(flights, stay, strict=True)), 24)
        assert [flight.rows.tolist() for flight in together] == [[0, 1], [3, 4, 6, 7]]
        for flight in together:
            rows = flight.rows.tolist()
            answers = run_early_exit(model, [flight._replace(rows=torch.arange(len(rows)))], None, None)
            for row, logits in zip(rows, answers.logits, strict=True):
                alone = model(**padded_inputs([lengths[row]]), early_exit=False).logits[0]
                torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


def check_every_threshold(model: Model, inputs: dict[str, Tensor]) -> None:
    """A batch with early exit is what its trace predicts."""
    trace = trace_of(model, inputs)
    for threshold in thresholds_between(trace):
        logits, exit_layer = predicted(model, trace, threshold)
        with torch.no_grad():
            found = model(**inputs, exit_threshold=threshold)
        torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.exit_layer, exit_layer)


def test_one_mask_may_serve_all_rows() -> None:
    model = build("deebert")
    inputs = inputs_of(model, "none") | {"attention_mask": (torch.arange(9) < 6).expand(1, 1, 9, 9)}
    check_every_threshold(model, inputs)


@pytest.mark.parametrize("padding", ["right", "none"])
def test_positions_may_be_the_same_for_all_rows(padding: str) -> None:
    model = build("deebert")
    inputs = inputs_of(model, padding) | {"position_ids": torch.arange(9).flip(0)}
    check_every_threshold(model, inputs)


def test_the_rows_of_a_batch_are_a_multiple_of_8() -> None:
    assert [rows_per_batch(1024, width) for width in (10, 100, 200, 2000)] == [96, 8, 5, 1]


def test_columns_that_are_pads_in_every_row_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, shapes = build("deebert"), padded_inputs([3, 9, 5]), []
    expected = model(**inputs, exit_threshold=0.9)
    wide = {name: torch.cat([value, torch.zeros_like(value)], dim=1) for name, value in inputs.items()}
    layer_step = model.layer_step

    def noted(index: int, layer: Any, hidden: Tensor, *args: Any) -> Any:
        shapes.append(tuple(hidden.shape[:2]))
        return layer_step(index, layer, hidden, *args)

    monkeypatch.setattr(model, "layer_step", noted)
    torch.testing.assert_close(model(**wide, exit_threshold=0.9).logits, expected.logits)
    assert shapes[0] == (3, 9)
    with pytest.raises(ValueError, match="attention_mask: got shape"):
        model(input_ids=wide["input_ids"], attention_mask=inputs["attention_mask"], exit_threshold=0.9)


def padded_inputs(lengths: list[int]) -> dict[str, Tensor]:
    ids = torch.arange(5, 5 + max(lengths)).repeat(len(lengths), 1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def windowed(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Flash attention in slow: the window is no part of the mask, (batch, tokens)."""
    places, window = torch.arange(query.shape[2]), options.get("sliding_window") or query.shape[2]
    seen = ((places[:, None] - places).abs() < window)[None, None]
    seen = seen if mask is None else seen & mask[:, None, None].bool()
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2), None


@pytest.mark.parametrize("method", ["deebert", "depth-adaptive"])
def test_flash_attention_keeps_modernberts_windows(method: str, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(method, encoder_config=encoder_config("modernbert", global_attn_every_n_layers=3))
    inputs = inputs_of(model, padding)
    expected = trace_of(model, inputs)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", windowed)
    model.encoder.config._attn_implementation = "flash_attention_2"
    torch.testing.assert_close(trace_of(model, inputs), expected, atol=1e-5, rtol=1e-5)


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: single values, `nonzero` and masks as indices, and lists."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count, listed = 0, Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            self.count += 1
            return listed(tensor)

        monkeypatch.setattr(Tensor, "tolist", counted)  # on a CPU it calls no operator

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        by_mask = name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])
        self.count += by_mask or name in ("_local_scalar_dense", "is_nonzero", "nonzero")
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize("batch_tokens", [0, 24])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_host_reads_once_per_layer(
    name: str, attention: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attention == "sdpa" and name in EAGER_ONLY:
        pytest.skip("has no other attention")
    answers = naming([[1, 1, 1]] * 60) * 50
    answers[torch.arange(60) % 3 > 0, 0] = 0.0  # two of three stay after layer 1, all pads or holes
    model = scripted("deebert", answers, name)
    model.encoder.set_attn_implementation(attention)
    moving = []
    for first in range(5, 60, 5):
        batch = padded_inputs([9, 7, 5, 5, 3])
        batch["input_ids"][:, 0] = torch.arange(first, first + 5)
        flight = flight_of(model, batch)
        moving.append(flight._replace(rows=flight.rows + first - 5))
    with torch.inference_mode(), HostReads(monkeypatch) as reads:
        found = run_early_exit(model, moving, [0.5] * 3, None, batch_tokens)
    assert reads.count == 2
    assert sorted(set(found.exit_layer.tolist())) == [1, 2]


@pytest.mark.parametrize("name", ["bert", "mpnet", "deberta-v2-conv", "modernbert"])
def test_memory_of_a_window_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, windows = build("deebert", name), rows_of(60), []
    whole = silent(model, rows, exit_threshold=0.9)

    def noted(model: Model, flights: list[InFlight], *args: Any) -> Any:
        tensors = [
            tensor
            for each in flights
            for tensor in (each.hidden, *each.context.masks.values(), *each.context.shared.values())
        ]
        windows.append(sum(tensor.nbytes for tensor in tensors if tensor is not None))
        return run_early_exit(model, flights, *args)

    monkeypatch.setattr("adaexit_hf.inference.prediction.run_early_exit", noted)
    found = silent(model, rows, exit_threshold=0.9, max_memory=30_000, batch_tokens=24)
    assert len(windows) > 3
    assert max(windows) <= 30_000
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def test_the_mode_of_every_module_is_restored() -> None:
    model = build("deebert").train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    silent(model, rows_of(5), exit_threshold=0.9)
    assert [module.training for module in model.modules()] == modes


# What it takes -------------------------------------------------------------------------------------------------------


def test_texts_pairs_and_rows_are_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("deebert")
    texts = ["w7 w8 w9", "", "w10", "w20 w21 w22 w23"]
    pairs = [(text, "w30 w31") for text in texts]
    for given in (texts, pairs):
        first, second = (given, None) if given is texts else zip(*given, strict=True)
        encoded = tokenizer(list(first), None if second is None else list(second))
        rows = [{name: encoded[name][place] for name in encoded} for place in range(4)]
        expected = silent(model, rows, exit_threshold=0.9)
        as_rows = [
            {"text": item, "idx": 1} if given is texts else {"text": item[0], "text_pair": item[1]} for item in given
        ]
        for dataset in (given, iter(given), as_rows, Dataset.from_list(as_rows), Dataset.from_list(rows)):
            torch.testing.assert_close(silent(model, dataset, tokenizer, exit_threshold=0.9), expected)


def test_texts_and_pairs_may_be_mixed(tokenizer: PreTrainedTokenizerFast) -> None:
    model, given = build("deebert"), ["w7 w8", ("w9", "w10"), {"input_ids": [1, 11, 2]}, "w12"]
    single = [silent(model, [item], tokenizer, exit_threshold=0.9) for item in given]
    together = silent(model, given, tokenizer, exit_threshold=0.9)
    torch.testing.assert_close(together.logits, torch.cat([each.logits for each in single]), atol=1e-5, rtol=1e-5)


def test_pads_at_the_end_of_rows_do_not_count() -> None:
    model = build("deebert")
    padded = [{"input_ids": [7, 8, 0, 0], "attention_mask": [1, 1, 0, 0]}, {"input_ids": [9, 10, 11, 12]}]
    padded[1]["attention_mask"] = [1] * 4
    bare = [{"input_ids": [7, 8]}, {"input_ids": [9, 10, 11, 12]}]
    torch.testing.assert_close(silent(model, padded, exit_threshold=0.9), silent(model, bare, exit_threshold=0.9))


def test_texts_beyond_the_position_table_are_cut_off_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    model, long = build("deebert"), " ".join(WORDS)
    with pytest.warns(UserWarning, match="2 texts have more than 32 tokens"):
        found = silent(model, [long, "w7", long], tokenizer, early_exit=False)
    cut = tokenizer(long, truncation=True, max_length=32)
    torch.testing.assert_close(found.logits[:1], one_at_a_time(model, [dict(cut)], early_exit=False)[0])


def test_a_tokenized_row_that_is_too_long_keeps_its_last_token() -> None:
    model = build("deebert")
    with pytest.warns(UserWarning, match="1 texts have more than 32 tokens"):
        found = silent(model, [{"input_ids": [1, *range(5, 55), 2]}], early_exit=False)
    torch.testing.assert_close(found, silent(model, [{"input_ids": [1, *range(5, 35), 2]}], early_exit=False))


def test_the_first_truncated_texts_of_a_stream_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have no end; what follows is counted at the end."""
    monkeypatch.setattr("adaexit_hf.models.padded_batches.BLOCK", 2)
    model, short, long = build("deebert"), {"input_ids": [1, 7, 2]}, {"input_ids": [1, *range(5, 55), 2]}
    endless = predict_stream(model, chain([short, long], repeat(long)), early_exit=False, max_memory=1, progress=False)
    with pytest.warns(UserWarning, match="^1 texts have more than 32 tokens"):
        next(endless)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [next(endless).place for _ in range(4)] == [1, 2, 3, 4]
    with pytest.warns(UserWarning, match="texts have more than 32 tokens") as told:
        list(predict_stream(model, [short, long, long, long], early_exit=False, progress=False))
    assert [str(each.message)[:7] for each in told] == ["1 texts", "3 texts"]


def test_depths_of_tokens_are_passed_on() -> None:
    model = build("depth-adaptive", depth_source="reconstruction")
    rows = [{"input_ids": [7, 8, 9], "token_depths": [1, 2, 1]}, {"input_ids": [7, 8], "token_depths": [3, 1]}]
    found = silent(model, rows, early_exit=False)
    torch.testing.assert_close(found.logits, one_at_a_time(model, rows, early_exit=False)[0], atol=1e-5, rtol=1e-5)


# Streams -------------------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_same_in_order() -> None:
    model, rows = build("deebert"), rows_of()
    whole = silent(model, rows, exit_threshold=0.9)
    stream = list(predict_stream(model, iter(rows), exit_threshold=0.9, max_memory=20_000, progress=False))
    assert [each.place for each in stream] == list(range(40))
    assert isinstance(stream[0], Prediction)
    torch.testing.assert_close(torch.stack([each.logits for each in stream]), whole.logits, atol=1e-5, rtol=1e-5)
    assert [each.exit_layer for each in stream] == whole.exit_layer.tolist()


def test_a_stream_reads_no_further_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaexit_hf.models.padded_batches, "BLOCK", 5)
    read = []

    def endless() -> Iterator[dict[str, list[int]]]:
        while True:
            read.append(1)
            yield {"input_ids": [7, 8, 9]}

    model = build("deebert")
    stream = predict_stream(model, endless(), exit_threshold=0.9, max_memory=3_000, progress=False)
    for _ in range(20):
        next(stream)
    assert len(read) < 40


def test_inference_mode_does_not_leak_into_the_caller() -> None:
    stream = predict_stream(build("deebert"), rows_of(4), exit_threshold=0.9, progress=False)
    assert not next(stream).logits.is_inference()  # such a tensor could not be changed in place
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def failing(count: int) -> Iterator[dict[str, list[int]]]:
    for number in range(count):
        yield {"input_ids": [7, 8 + number]}
    raise OSError("disk gone")


def test_a_data_set_that_fails_midway_is_answered_so_far() -> None:
    stream = predict_stream(build("deebert"), failing(3), exit_threshold=0.9, progress=False)
    assert [next(stream).place for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DatasetError, match="dataset: item 3 raised OSError: disk gone") as raised:
        next(stream)
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (5, "item 3 is 5; pass texts"),
        ({"label": 1}, "item 3 is {'label': 1}; pass texts"),
        ({"input_ids": []}, "item 3 has no tokens"),
        ({"input_ids": None}, "item 3 has the input_ids None; pass a flat list"),
        ({"input_ids": [7, 8], "attention_mask": [1]}, "item 3: attention_mask: got 1 values for 2 tokens"),
    ],
)
@pytest.mark.parametrize("kind", ["texts", "rows"])
def test_what_comes_before_a_bad_item_is_answered(
    kind: str, bad: Any, message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    good: list[Any] = ["w7", "w8 w9", "w10"] if kind == "texts" else rows_of(3)
    stream = predict_stream(build("deebert"), [*good, bad, *good], tokenizer, exit_threshold=0.9, progress=False)
    assert [next(stream).place for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=f"dataset: {message}"):
        next(stream)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "dataset: got no texts; pass at least one"),
        ("one text", r"dataset: got str; pass a list of texts or rows, .*predict\(model, \[text\], tokenizer\)"),
        ({"train": [1], "test": []}, "dataset: got dict; pass a list"),
        (5, "dataset: got int; pass a list"),
        (["w7", 8], "dataset: item 1 is 8; pass texts, pairs of texts"),
        ([("w7", "w8", "w9")], "dataset: item 0 is .*'w9'.*pass texts, pairs of texts"),
        ([{"sentence": "w7"}], "dataset: item 0 is {'sentence': 'w7'}; pass texts"),
        ([{"input_ids": []}], "dataset: item 0 has no tokens"),
        ([{"input_ids": [7, 8], "attention_mask": [1]}], "attention_mask: got 1 values for 2 tokens"),
        ([{"input_ids": [7, 8], "token_type_ids": [0, 1]}, {"input_ids": [9]}], "some rows have a column 'token_type"),
        ([{"input_ids": [7, 8]}, {"input_ids": [9], "token_type_ids": [1]}], "some rows have a column 'token_type_id"),
    ],
)
def test_bad_data_sets_are_refused(dataset: Any, message: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=message):
        silent(build("deebert"), dataset, tokenizer, exit_threshold=0.9)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"exit_threshold": float("nan")}, "exit_threshold: got nan"),
        ({"early_exit": True}, "early_exit: got True, which needs a threshold"),
        ({"batch_tokens": -5}, "batch_tokens: got -5; pass a whole number from 1, e.g. batch_tokens=1024"),
        ({"batch_tokens": 0}, "batch_tokens: got 0; pass a whole number from 1, e.g. batch_tokens=1024"),
        ({"max_memory": 1.5}, r"max_memory: got 1.5; pass a whole number from 1, e.g. max_memory=2\*\*30"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        silent(build("deebert"), rows_of(3), **kwargs)


def test_texts_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer: got None for a data set of texts; pass AutoTokenizer"):
        silent(build("deebert"), ["w7"], exit_threshold=0.9)


def test_warns_of_nothing_else(tokenizer: PreTrainedTokenizerFast) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent(build("deebert"), ["w7", ""], tokenizer, exit_threshold=0.9)


@pytest.mark.parametrize("slow", [True, False])
def test_bf16_on_a_cpu_without_units_is_warned_about(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    monkeypatch.setattr("adaexit_hf.inference.prediction.bf16_is_slow", lambda device: slow)
    model = build("deebert").bfloat16()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict(model, [{"input_ids": [1, 5, 2]}], exit_threshold=0.5, progress=False)
    assert any("this CPU has no units" in str(each.message) for each in caught) == slow
