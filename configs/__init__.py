"""Experiments: small deltas on `base`."""
