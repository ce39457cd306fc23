"""Search: a sweep over settings of one experiment. `pipelines/sweep.py` is its command."""
