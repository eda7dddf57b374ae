"""Exact float64 matrices, float32 tables of them, ODE solvers, schedules and random numbers by example."""
