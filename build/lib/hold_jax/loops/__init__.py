"""The loops: train, generate, evaluate, likelihood. They take built objects, never a config."""
