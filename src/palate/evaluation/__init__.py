"""Evaluation: metrics, intervals, the few-shot curve and the report."""
