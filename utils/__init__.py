"""Everything around the science: configs, runs, evaluation, checkpoints, pictures."""
