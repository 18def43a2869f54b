"""A pre-norm attention block with SwiGLU and gated residuals.

Pre-norm: Xiong et al., 2020, arXiv:2002.04745; SwiGLU: Shazeer, GLU Variants, 2020, arXiv:2002.05202; a gate on each
residual branch, read from the block's input: LiGR, Borisyuk et al., 2025, arXiv:2502.03417, shown to help sequential
recommenders by eSASRec, Tikhonovich et al., 2025, arXiv:2508.06450.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from palate.backbone.blocks import Block, BlockConfig, PairBias, Pairs, Stacked, stack
from palate.backbone.dropout import Dropout

_MASKED = -1e4
"""Added to what must not be read: e^-10000 is 0 in every type, and no infinity meets another."""


class AttentionBlock(Block):
    """x + gate(x) · attention(norm(x)), then x + gate(x) · swiglu(norm(x))."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, round((config.hidden_multiple or 4.0) * config.dim)
        self.num_heads = config.num_heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.gate_attention, self.gate_feed = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.bias = PairBias(config)
        self.dropout = Dropout(config.dropout)
        for linear in (self.query_key_value, self.out, self.up, self.down):
            nn.init.normal_(linear.weight, std=0.5 / math.sqrt(dim))

    def forward(self, x: Float[Tensor, "row position dim"], pairs: Pairs) -> Float[Tensor, "row position dim"]:
        """Map the states of one layer to those of the next."""
        attended = self.dropout(self.out(self.attend(self.norm_attention(x), pairs)))
        x = x + attended * torch.sigmoid(self.gate_attention(x))
        up, gate = self.up(self.norm_feed(x)).chunk(2, -1)
        fed = self.dropout(self.down(F.silu(gate) * up))
        result: Tensor = x + fed * torch.sigmoid(self.gate_feed(x))
        return result

    def attend(self, x: Float[Tensor, "row position dim"], pairs: Pairs) -> Float[Tensor, "row position dim"]:
        """Softmax attention, written out on a CPU: the fused kernel has neither dropout nor a second derivative there.

        On an accelerator the fused kernel runs it.
        """
        rows, width, dim = x.shape
        heads, size = self.num_heads, dim // self.num_heads
        query, key, value = self.query_key_value(x).view(rows, width, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        bias = torch.zeros(width, width, dtype=query.dtype, device=x.device).masked_fill_(pairs.future, _MASKED)
        if (learned := self.bias(pairs)) is not None:
            bias = bias + learned.to(query.dtype)
        if x.device.type != "cpu":
            rate = self.dropout.rate if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate)
        else:
            logits = torch.baddbmm(
                bias.expand(rows, heads, width, width).reshape(-1, width, width),
                query.reshape(-1, width, size),
                key.reshape(-1, width, size).transpose(1, 2),
                alpha=1 / math.sqrt(size),
            )
            weights = self.dropout(logits.softmax(-1))
            mixed = torch.bmm(weights, value.reshape(-1, width, size)).view(rows, heads, width, size)
        return mixed.transpose(1, 2).reshape(rows, width, dim)

    @classmethod
    def stacked(cls, blocks: Sequence[Block]) -> Stacked:
        """One product for all members, with what multiplies or scales a product folded into its weights."""
        members = cast(Sequence[AttentionBlock], blocks)
        heads, dim = members[0].num_heads, members[0].out.in_features
        size = dim // heads
        scale = torch.ones(3 * dim)
        scale[:dim] = 1 / math.sqrt(size)
        project, project_bias = _behind_norm([(block.norm_attention, block.query_key_value) for block in members])
        project, project_bias = project * scale, project_bias * scale
        (ask, told), (ask_bias, told_bias) = (
            [whole[..., :dim].contiguous(), whole[..., dim:].contiguous()] for whole in (project, project_bias)
        )
        up, up_bias = _behind_norm([(block.norm_feed, block.up) for block in members])
        out, down = (stack(getattr(block, name).weight.T for block in members) for name in ("out", "down"))
        (gate, gate_bias), (feed, feed_bias) = (
            (
                stack(getattr(block, name).weight.T for block in members),
                stack(getattr(block, name).bias for block in members)[:, None],
            )
            for name in ("gate_attention", "gate_feed")
        )

        def layer(x: Tensor, pairs: Pairs, last: bool) -> Tensor:
            num_members, width, _ = x.shape
            normed = F.layer_norm(x, (dim,))
            learned = [block.bias(pairs) for block in members]
            bias = None
            if learned[0] is not None:
                bias = torch.cat([own.reshape(1, heads, width, width) for own in learned])
                bias = bias.masked_fill_(pairs.future, _MASKED)
            if last:
                both = torch.baddbmm(told_bias, normed, told).view(num_members, width, 2, heads, size)
                key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
                query = torch.baddbmm(ask_bias, normed[:, -1:], ask).view(num_members, heads, 1, size)
                bias, x = None if bias is None else bias[:, :, -1:], x[:, -1:]
            else:
                all_three = torch.baddbmm(project_bias, normed, project).view(num_members, width, 3, heads, size)
                query, key, value = all_three.permute(2, 0, 3, 1, 4).unbind(0)
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, is_causal=bias is None and not last, scale=1.0
            )
            attended = torch.bmm(mixed.transpose(1, 2).reshape(num_members, -1, dim), out)
            x = torch.addcmul(x, attended, torch.baddbmm(gate_bias, x, gate).sigmoid_())
            hidden, opened = torch.baddbmm(up_bias, F.layer_norm(x, (dim,)), up).chunk(2, -1)
            fed = torch.bmm(F.silu(opened).mul_(hidden), down)
            return torch.addcmul(x, fed, torch.baddbmm(feed_bias, x, feed).sigmoid_())

        return layer


def _behind_norm(pairs: Sequence[tuple[nn.LayerNorm, nn.Linear]]) -> tuple[Tensor, Tensor]:
    """Weights and biases of linear maps after a norm, with the norm's own weight and bias taken in."""
    weights = stack((linear.weight * norm.weight).T for norm, linear in pairs)
    return weights, stack(linear.weight @ norm.bias for norm, linear in pairs)[:, None]
