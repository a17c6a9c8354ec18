"""Generated text: eight small data sets, and the corpus of the embedded tiny models."""
