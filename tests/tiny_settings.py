"""Settings under which `palate train` takes seconds, as tables of a TOML file."""

TRAINING = """
[model]
dim = 8
num_layers = 1
[training]
num_epochs = 1
[meta]
num_steps = 2
validate_every = 1
min_items = 6
min_query = 2
support_sizes = [0, 2]
"""
EVALUATION = """
[evaluation]
cut = "2024-02-01"
min_items = 6
support_sizes = [0, 2]
num_resamples = 50
"""
