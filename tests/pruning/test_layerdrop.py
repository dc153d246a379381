"""Static baselines on every encoder family, against the embeddings and a loop over the layers."""

import copy

import pytest
import torch
from helpers.tiny import FAMILIES, batch, encoder_config
from transformers import AutoModelForSequenceClassification, GPT2Config

from adaexit_hf.models.encoder_layers import embed_inputs as embed
from adaexit_hf.models.encoder_layers import family_of, run_layer
from adaexit_hf.pruning.layerdrop import evenly_spaced, keep_layers, layer_drop, only_layers
from adaexit_hf.trainer.training_args import CHECKPOINTING

ENCODERS = [*FAMILIES, "deberta-v2-conv", "albert-inner", "modernbert-mean"]
DEEP = [name for name in ENCODERS if name != "albert-inner"]  # one with several groups cannot lose single layers


def classifier(name: str = "bert", **kwargs):
    """A stock classifier in training mode, without dropout."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(encoder_config(name, num_labels=3, **kwargs))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def naive(model, inputs, layers):
    """What the encoder should return when only these layers run."""
    encoder = model.base_model
    family = family_of(encoder.config)
    arguments = {"token_type_ids": None, "position_ids": None, "inputs_embeds": None} | inputs
    hidden, context = embed(encoder, **arguments)
    found = family.layers(encoder)
    for index, layer in enumerate(layers):
        hidden, _ = run_layer(encoder, index, found[layer - 1], hidden, context)
    return family.finish(encoder, hidden)


@pytest.mark.parametrize("name", ENCODERS)
def test_at_probability_0_nothing_changes(name):
    model = classifier(name)
    inputs = batch(model.config)
    torch.manual_seed(1)
    before = model(**inputs).logits
    layer_drop(model, 0.0)
    torch.manual_seed(1)
    torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_at_probability_1_only_the_embeddings_are_left(name):
    model = classifier(name)
    inputs = batch(model.config)
    layer_drop(model, 1.0)
    hidden = model.base_model(**inputs).last_hidden_state
    if name == "deberta-v2-conv":  # its convolution stands behind the first layer, and stays
        encoder = model.base_model.encoder
        embedded = naive(model, inputs, [])
        expected = encoder.conv(embedded, embedded, inputs["attention_mask"])
    else:
        expected = naive(model, inputs, [])
    torch.testing.assert_close(hidden, expected)
    model(**inputs).logits.sum().backward()
    layers = family_of(model.config).layers(model.base_model)
    assert all(value.grad is None for layer in layers for value in layer.parameters())


@pytest.mark.parametrize("name", ENCODERS)
def test_in_eval_mode_no_layer_is_dropped(name):
    model = classifier(name).eval()
    inputs = batch(model.config)
    before = model(**inputs).logits
    layer_drop(model, 1.0)
    torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bert", "albert", "mpnet"])
def test_the_share_of_dropped_layers(name):
    model = classifier(name, num_hidden_layers=4)
    inputs = batch(model.config, rows=1, tokens=4)
    states, dropped = [], 0
    for layer in dict.fromkeys(family_of(model.config).layers(model.base_model)):
        layer.register_forward_hook(
            lambda _, args, output: states.append(args[0] is (output[0] if isinstance(output, tuple) else output))
        )
    layer_drop(model, 0.3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(250):
            model(**inputs)
    dropped = sum(states)
    assert len(states) == 1000
    assert abs(dropped - 300) < 45  # three standard deviations: 3 * sqrt(1000 * 0.3 * 0.7) = 43.5


def test_layers_are_drawn_independently_and_anew_for_every_batch():
    model = classifier(num_hidden_layers=2)
    inputs = batch(model.config, rows=1, tokens=4)
    layer_drop(model, 0.5)
    with torch.no_grad():
        answers = {round(model(**inputs).logits.sum().item(), 4) for _ in range(60)}
    assert len(answers) == 4  # none, the first, the second, both


@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_under_gradient_checkpointing_the_same_layers_are_dropped_again(name):
    model = classifier(name)
    inputs = batch(model.config)
    layer_drop(model, 0.5)
    plain = copy.deepcopy(model)
    getattr(model, f"{CHECKPOINTING}_enable")()
    for seed in range(4):
        for one in (plain, model):
            one.zero_grad()
            torch.manual_seed(seed)
            one(**inputs).logits.sum().backward()
        for expected, value in zip(plain.parameters(), model.parameters(), strict=True):
            assert (expected.grad is None) == (value.grad is None)
            if value.grad is not None:
                torch.testing.assert_close(value.grad, expected.grad)


def test_a_copy_drops_its_own_layers():
    model = classifier()
    layer_drop(model, 0.0).probability = 1.0
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    inputs = batch(model.config)
    torch.testing.assert_close(twin.base_model(**inputs).last_hidden_state, naive(twin, inputs, []))


def test_a_handle_takes_everything_back():
    model, inputs = classifier(), batch(encoder_config())
    before, classes = model(**inputs).logits, [type(module) for module in model.modules()]
    handle = layer_drop(model, 1.0)
    with pytest.raises(ValueError, match="model: has LayerDrop already; call remove"):
        layer_drop(model, 0.5)
    handle.remove()
    assert [type(module) for module in model.modules()] == classes
    torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)


def test_checkpoints_do_not_know_of_it(tmp_path):
    model = classifier()
    names = list(model.state_dict())
    layer_drop(model, 0.5)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert [type(module).__name__ for module in loaded.modules()] == [type(m).__name__ for m in model.modules()]
    inputs = batch(model.config)
    torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits, rtol=0, atol=0)


# Families differ in where their layers and the numbers in them lie, not in which are kept.
@pytest.mark.parametrize(
    ("name", "layers"), [*((name, [1, 3]) for name in DEEP), ("bert", [2]), ("bert", [1, 2, 3]), ("modernbert", [2])]
)
def test_kept_layers_equal_a_loop_over_them_also_when_reloaded(name, layers, tmp_path):
    model = classifier(name).eval()
    inputs = batch(model.config)
    layers = [1] if name.startswith("modernbert") and layers == [2] else layers
    with torch.no_grad():
        expected = naive(model, inputs, layers)
        keep_layers(model, layers)
        torch.testing.assert_close(model.base_model(**inputs).last_hidden_state, expected, rtol=0, atol=0)
        assert model.config.num_hidden_layers == len(layers)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert loaded.config.num_hidden_layers == len(layers)
        assert {name: value.shape for name, value in loaded.state_dict().items()} == {
            name: value.shape for name, value in model.state_dict().items()
        }
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", DEEP)
def test_the_first_layers_alone_need_nothing_from_here(name, tmp_path):
    model = classifier(name).eval()
    model.save_pretrained(tmp_path)
    first = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_hidden_layers=2)
    inputs = batch(model.config)
    with torch.no_grad():
        expected = naive(model, inputs, [1, 2])
        torch.testing.assert_close(first.base_model(**inputs).last_hidden_state, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", DEEP)
def test_after_the_block_all_layers_are_back(name):
    model = classifier(name).eval()
    inputs, names = batch(model.config), list(model.state_dict())
    before, config = model(**inputs).logits, model.config.to_dict()
    with only_layers(model, [1]):
        assert model.config.num_hidden_layers == 1
        assert not torch.equal(model(**inputs).logits, before)
    torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)
    assert (list(model.state_dict()), model.config.to_dict()) == (names, config)


def test_dropped_layers_can_be_taken_out():
    model = classifier()
    layer_drop(model, 0.5).remove()
    keep_layers(model, evenly_spaced(3, 2))
    assert len(model.base_model.encoder.layer) == 2


@pytest.mark.parametrize("depth", range(1, 25))
def test_evenly_spaced_layers(depth):
    for kept in range(1, depth + 1):
        layers = evenly_spaced(depth, kept)
        gaps = [after - before for before, after in zip(layers, [*layers[1:], depth + 1], strict=True)]
        assert layers[0] == 1 and len(layers) == kept and max(gaps) - min(gaps) <= 1 and min(gaps) >= 1
    for every in range(2, depth + 1):
        expected = [layer for layer in range(1, depth + 1) if layer % every]
        share = 1 - len(expected) / depth
        if int(1 / share + 1e-9) == every:  # the share that is taken out tells the rule
            assert evenly_spaced(depth, len(expected)) == expected


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_no_probability(probability):
    with pytest.raises(ValueError, match="probability: got .*; pass a number from 0"):
        layer_drop(classifier(), probability)


@pytest.mark.parametrize("layers", [[], [0, 1], [2, 1], [1, 1], [1, 4]])
def test_no_such_layers(layers):
    with pytest.raises(ValueError, match=r"layers: got .*; pass ascending layer numbers from 1 to 3, e.g. \[1, 3\]"):
        keep_layers(classifier(), layers)


@pytest.mark.parametrize("name", ["albert-groups", "albert-inner"])
def test_groups_of_shared_layers_cannot_be_told_apart(name):
    model = classifier(name)
    with pytest.raises(ValueError, match=r"share the weights of \d groups.*needs num_hidden_groups=1"):
        keep_layers(model, [1, 2])


def test_the_first_layer_of_modernbert_stays():
    model = classifier("modernbert")
    before = model.config.to_dict()
    with pytest.raises(ValueError, match=r"layers: got \[2, 3\]; only ModernBERT's first layer has no attention norm"):
        keep_layers(model, [2, 3])
    assert model.config.to_dict() == before


@pytest.mark.parametrize("kept", [0, 4])
def test_no_such_number_of_layers(kept):
    with pytest.raises(ValueError, match=f"kept: got {kept}; pass a number of layers from 1 to 3"):
        evenly_spaced(3, kept)


def test_an_unknown_encoder():
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8, num_labels=2)
    with pytest.raises(ValueError, match="cannot run 'gpt2' layer by layer"):
        layer_drop(AutoModelForSequenceClassification.from_config(config), 0.5)
