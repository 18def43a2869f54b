"""One step of training, the same in every small loop: a loss and a gradient that are finite, clipped, taken."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import _LinAlgError as LinAlgError  # type: ignore[attr-defined]

from palate.errors import NumericalError


def take_step(
    optimiser: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    *,
    name: str,
    step: int,
    advice: str,
    clip: float = math.inf,
    penalty: Callable[[], Tensor] | None = None,
) -> float:
    """Move the optimiser's parameters down the gradient of a loss.

    Args:
        optimiser: of the parameters that move.
        loss: computes the loss of a batch.
        name: how errors call what is trained.
        step: the number of the step, for errors.
        advice: what to do where it goes wrong, for errors.
        clip: longest gradient, all parameters together.
        penalty: added to the loss that is differentiated, not to what is returned.

    Returns:
        The loss before the step.

    Raises:
        NumericalError: the loss or its gradient is not finite, or a solve has no solution; names the step.
    """
    optimiser.zero_grad()
    try:
        found = loss()
        if torch.isfinite(found):
            (found if penalty is None else found + penalty()).backward()  # type: ignore[no-untyped-call]
    except LinAlgError:
        raise NumericalError(f"{name}: a solve failed at step {step}; {advice}") from None
    parameters = [one for group in optimiser.param_groups for one in group["params"] if one.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    if not torch.isfinite(found) or not torch.isfinite(norm):
        what, got = ("gradient", norm) if torch.isfinite(found) else ("loss", found)
        raise NumericalError(f"{name}: the {what} became {got.item()} at step {step}; {advice}")
    optimiser.step()
    return float(found.item())
