"""Feature extractors by name: what metrics compare samples in."""
