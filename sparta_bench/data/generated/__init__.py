"""Generated text: eight small data sets."""
