from dataclasses import replace

import pytest
import torch
from torch import Tensor

from palate.backbone.batches import BatchConfig, BatchSource, inputs
from palate.backbone.item_tables import ItemTableConfig
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.warm_start import grow_model, renew_model, transfer_model
from palate.data.event_log import from_sequences
from palate.errors import ConfigError, DataError

SMALL = SequenceModelConfig(dim=8, num_layers=1, max_events=9, dropout=0.0)
CONTENT = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
COUNTS = torch.arange(1, 41)
LOG = from_sequences([[0, 3, 5], [7, 2]])


def make(config: SequenceModelConfig = SMALL, items: int = 30, content: Tensor | None = CONTENT) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(config, Catalogue(COUNTS[:items], None if content is None else content[:items])).eval()


@pytest.mark.parametrize("kind", ["full", "hashed"])
@pytest.mark.parametrize("content", [CONTENT, None], ids=["content", "ids"])
def test_old_items_score_as_before_and_new_ones_by_content(kind: str, content: Tensor | None) -> None:
    table = ItemTableConfig(kind) if kind == "full" else ItemTableConfig(kind, compression=2)
    model = make(replace(SMALL, item_table=table), content=content)
    grown = grow_model(model, Catalogue(COUNTS, content))
    batch = inputs(LOG, 9)
    torch.testing.assert_close(grown.scores(batch)[:, :30], model.scores(batch))
    if content is not None:
        torch.testing.assert_close(grown.items.all()[30:], model.items.encode_new(content[30:]))
    assert (grown.items.bias[30:] >= model.items.bias.min()).all()
    assert model.items.num_items == 30


def test_a_grown_model_learns_its_new_items() -> None:
    grown = grow_model(make(), Catalogue(COUNTS, CONTENT)).train()
    log = from_sequences([[35, 36, 37]] * 4)
    source = BatchSource(log, BatchConfig(), 9)
    batch = source.load(source.plan(0, 0)[0])
    optimiser = torch.optim.Adam(grown.parameters(), 0.02)
    for _ in range(80):
        optimiser.zero_grad()
        (grown(batch).total / batch.num_targets()).backward()
        optimiser.step()
    assert grown.eval().scores(inputs(from_sequences([[35, 36]]), 9)).argmax() == 37


def test_another_shop_takes_over_what_content_says() -> None:
    model = make()
    other = transfer_model(model, Catalogue(COUNTS[:12], CONTENT[20:32]))
    assert other.items.num_items == 12
    near = model.items.encode_new(CONTENT[20:32])
    assert (other.items.all() - near).norm() < 0.2 * other.items.table.num_items
    for name, value in model.state_dict().items():
        if not name.startswith(("items.table", "items.bias")):
            torch.testing.assert_close(other.state_dict()[name], value)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="20 items, the model has 30"):
        grow_model(make(), Catalogue(COUNTS[:20], CONTENT[:20]))
    with pytest.raises(DataError, match="0 content features an item, the model was trained with 6"):
        grow_model(make(), Catalogue(COUNTS))
    with pytest.raises(DataError, match="5 content features"):
        transfer_model(make(), Catalogue(COUNTS, CONTENT[:, :5]))
    with pytest.raises(ConfigError, match="trained without content"):
        transfer_model(make(content=None), Catalogue(COUNTS, CONTENT))


def test_items_that_leave_take_their_rows_along_and_the_others_stay() -> None:
    model = make()
    kept = torch.tensor([4, 0, 29, 11])
    content = torch.cat([CONTENT[kept], CONTENT[30:33]])
    renewed = renew_model(model, Catalogue(torch.arange(1, 8), content), kept)
    assert renewed.items.num_items == 7
    torch.testing.assert_close(renewed.items.all()[:4], model.items.all()[kept])
    torch.testing.assert_close(renewed.items.bias[:4], model.items.bias[kept])
    torch.testing.assert_close(renewed.items.all()[4:], model.items.encode_new(CONTENT[30:33]))
    old, new = from_sequences([[4, 0], [29, 11, 4]]), from_sequences([[0, 1], [2, 3, 0]])
    torch.testing.assert_close(renewed.scores(inputs(new, 9))[:, :4], model.scores(inputs(old, 9))[:, kept])
    assert model.items.num_items == 30


def test_where_nothing_leaves_renewing_is_growing() -> None:
    hashed = make(replace(SMALL, item_table=ItemTableConfig("hashed", compression=2)))
    catalogue = Catalogue(COUNTS, CONTENT)
    one, other = renew_model(hashed, catalogue, torch.arange(30)), grow_model(hashed, catalogue)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value)
    with pytest.raises(ConfigError, match="none can leave; train from nothing"):
        renew_model(hashed, catalogue, torch.arange(1, 30))
    with pytest.raises(DataError, match="none of the items that the model was trained on is left"):
        renew_model(make(), catalogue, torch.zeros(0, dtype=torch.int64))
