"""`sparta-bench bench`: what a training step costs, method beside method (docs/benchmark.md).

All get the same random weights, batch, optimizer and dtype rule.
"""
