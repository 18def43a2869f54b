"""Ways to score items for a person beside the adapted head: what goes with what, counted over everyone."""
