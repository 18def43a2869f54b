"""Content encoders: what is known without behaviour (text, attributes) becomes vectors."""

from palate.encoders.attributes import AttributeConfig, AttributeEncoder
from palate.encoders.text import TextConfig, encode_texts

__all__ = ["AttributeConfig", "AttributeEncoder", "TextConfig", "encode_texts"]
