"""What samples are compared in: feature networks, reference statistics and figures."""
