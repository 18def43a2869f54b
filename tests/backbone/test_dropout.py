import pytest
import torch

from palate.backbone.dropout import Dropout


def test_share_scale_and_gradient() -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 500, requires_grad=True)
    y = Dropout(0.25)(x)
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.75]))
    assert abs((y == 0).float().mean().item() - 0.25) < 0.005
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_stays(dtype: torch.dtype) -> None:
    assert Dropout(0.5)(torch.ones(4, dtype=dtype)).dtype == dtype


def test_the_global_generator_decides() -> None:
    x, dropout = torch.ones(50), Dropout(0.5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    torch.testing.assert_close(dropout(x), first, rtol=0, atol=0)


def test_it_rests_in_evaluation_and_at_rate_zero() -> None:
    x = torch.ones(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
