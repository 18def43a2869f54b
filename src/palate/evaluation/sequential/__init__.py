"""The public benchmark of next-item models: leave one out, full ranking, floors in the same table."""
