"""Processes, storage, the work directory, the device mesh, logs, progress and pictures."""
