"""Public few-shot protocols: the same tasks, the same metrics, the floor in the same table."""
