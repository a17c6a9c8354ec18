"""The training loop and its parts; knows no method by name."""
