"""Dropout whose mask costs a tenth of PyTorch's on a CPU (Srivastava et al., 2014, JMLR 15:1929–1958).

PyTorch draws its CPU masks one number at a time (13 ms for 1.6 million), more than the matrix products of a small
transformer take. Here a mask is one byte an element from a fast generator (0.9 ms). That generator is seeded anew for
each mask from PyTorch's global one, so `torch.manual_seed` and the saved state of that generator are all there is to
repeat or to resume a run.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_STEPS = 256


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        seed = int(torch.randint(2**62, ()))
        generator = np.random.Generator(np.random.SFC64(seed))
        keep = torch.from_numpy(generator.integers(0, _STEPS, x.shape, np.uint8)) >= dropped
        ctx.save_for_backward(keep)
        ctx.scale = _STEPS / (_STEPS - dropped)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None


class Dropout(nn.Module):
    """Zero each element with probability `rate` in training and scale the others so that the mean stays.

    On a CPU the rate is rounded to the next 1/256, the scale with it. Elsewhere it is PyTorch's own dropout.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return x itself in evaluation mode or at rate 0."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        dropped: Tensor = _ByteDropout.apply(x, min(_STEPS - 1, round(self.rate * _STEPS)))  # type: ignore[no-untyped-call]
        return dropped
