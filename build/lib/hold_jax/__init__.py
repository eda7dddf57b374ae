"""HOLD: diffusion models driven by high-order Langevin dynamics, in JAX."""
