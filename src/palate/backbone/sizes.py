"""Sizes of the large model, by the parameters of its sequence side: 1M, 10M, 100M, 1B, 10B.

The sequence side is all that does not grow with the catalogue: blocks, places and first tokens. Item tables count
apart, since a catalogue of 10⁸ items outweighs any of these.
"""

from collections.abc import Mapping
from types import MappingProxyType

from palate.backbone.sequence_model import SequenceModelConfig
from palate.errors import ConfigError

SIZES: Mapping[str, SequenceModelConfig] = MappingProxyType(
    {
        "tiny": SequenceModelConfig(dim=128, num_layers=3, num_heads=4),
        "small": SequenceModelConfig(dim=256, num_layers=8, num_heads=4),
        "base": SequenceModelConfig(dim=640, num_layers=14, num_heads=10, dropout=0.1),
        "large": SequenceModelConfig(dim=1536, num_layers=24, num_heads=12, dropout=0.1),
        "xl": SequenceModelConfig(dim=4096, num_layers=33, num_heads=32, dropout=0.1),
    }
)
"""Name to settings; heads are 32 wide in tiny, 64 in small and base, 128 beyond. A layer is deepened where a wider one
would make the item table, which is as wide, the larger part."""


def find_size(name: str) -> SequenceModelConfig:
    """The settings of a size; `dataclasses.replace` changes the others (block, loss, item table).

    Raises:
        ConfigError: no such size.
    """
    if name not in SIZES:
        raise ConfigError(f"size is {name!r}; choose one of: {', '.join(SIZES)}")
    return SIZES[name]
