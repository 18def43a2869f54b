"""The shared model: item tower, causal transformer over a person's recent events, and its pre-training."""
