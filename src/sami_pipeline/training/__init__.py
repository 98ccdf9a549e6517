"""Training: responses, the grids made of them, the student and the baselines."""
