"""Training: the train state, the step, the optimizer, checkpoints and stop requests."""
