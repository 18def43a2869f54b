"""Behaviour data: reading, validating, cleaning, splitting, and cutting into few-shot episodes."""
