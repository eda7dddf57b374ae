"""Weights of others' projects, read without their frameworks."""
