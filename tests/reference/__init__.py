"""Oracles that share no code with `hold_jax`: they read only the matrices and the schedule of an SDE."""
