"""Exact float64 matrices, their float32 tables, ODE solvers, noise schedules and per-example random numbers."""
