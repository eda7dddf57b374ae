"""Distances between sets of samples, in float64 NumPy on the host; none of them knows of diffusion."""
