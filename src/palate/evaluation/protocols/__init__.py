"""Public few-shot protocols: the same tasks, the same metrics, the baselines in the same table."""
