"""Few-shot models of ratings and of choices: what a person makes of items, from a handful that they have judged."""
