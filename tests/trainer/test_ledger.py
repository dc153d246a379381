"""The ledger of the stages belongs to the run, not to the model: it is not uploaded."""

from adaexit_hf.hub.upload import NEVER_UPLOADED
from adaexit_hf.trainer.ledger import LEDGER


def test_the_ledger_is_never_uploaded() -> None:
    assert LEDGER in NEVER_UPLOADED
