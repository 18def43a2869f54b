"""The public benchmark of next-item models: leave one out, full ranking, baselines in the same table."""
