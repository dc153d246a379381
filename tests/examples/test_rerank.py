"""The example that ranks passages, and sentence-transformers' CrossEncoder, exit early and agree."""

import io
from pathlib import Path

import pytest
import rerank
import torch
from helpers.pipeline_without_package import TEXTS
from helpers.predictions import count_layers, exiting
from helpers.words import new_tokenizer
from transformers import AutoModelForSequenceClassification

QUERY, PASSAGES = "w9 w8", TEXTS
PAIRS = [{"text": QUERY, "text_pair": passage} for passage in PASSAGES]


@pytest.fixture(scope="module", params=["berxit", "pabee"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("rerank") / "out"
    exiting(request.param, PAIRS, num_labels=1, encoder="roberta").save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    return str(folder)


def ranked(checkpoint: str) -> list[rerank.Ranked]:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    return rerank.rank(model, new_tokenizer(), QUERY, PASSAGES, progress=False)


def test_the_example_prints_the_ranking(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = ranked(checkpoint)
    assert [each.score for each in expected] == sorted((each.score for each in expected), reverse=True)
    assert min(each.exit_layer for each in expected) < 4
    (tmp_path / "passages.txt").write_text("\n\n".join(PASSAGES))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(PASSAGES)))
    for source in (str(tmp_path / "passages.txt"), "-"):
        rerank.main(["--model_name_or_path", checkpoint, "--query", QUERY, "--passages", source, "--top_k", "5"])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(maxsplit=3)[2:] for line in lines] == [
            [str(each.exit_layer), each.passage] for each in expected[:5]
        ]


def test_a_classifier_and_no_passages_are_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model: has 3 labels; pass a regression"):
        rerank.rank(exiting("deebert"), new_tokenizer(), QUERY, PASSAGES)
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"passages: '.*none\.txt' has no lines with text"):
        rerank.main(["--model_name_or_path", checkpoint, "--query", QUERY, "--passages", str(tmp_path / "none.txt")])


def test_cross_encoder_gives_the_same_order_and_exits_early(checkpoint: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    encoder, expected = library.CrossEncoder(checkpoint, device="cpu"), ranked(checkpoint)
    rows = count_layers(encoder[0].model)
    found = encoder.rank(QUERY, PASSAGES, activation_fn=torch.nn.Identity(), batch_size=5)
    assert sum(rows) == sum(each.exit_layer for each in expected) < 4 * len(PASSAGES)
    scores = torch.tensor([float(each["score"]) for each in found])
    torch.testing.assert_close(scores, torch.tensor([each.score for each in expected]), atol=1e-5, rtol=1e-4)
    del encoder[0].model.layer_step
    encoder.save_pretrained(str(tmp_path))
    again = library.CrossEncoder(str(tmp_path), device="cpu")
    assert [each["corpus_id"] for each in again.rank(QUERY, PASSAGES)] == [each["corpus_id"] for each in found]
