"""Predictions and scores of what was trained."""
