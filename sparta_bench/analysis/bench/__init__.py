"""`sparta-bench bench`: what a training step costs, method beside method.

Everybody gets the same random weights, the same batch, the same optimizer and the project's dtype
rule, and they take turns: one round is a few steps of each contender. On a CPU all stay in memory
between their turns; on CUDA each is built anew. Ratios are taken within a round, so that a machine
that is slower for a while changes both sides of them. docs/benchmark.md says more.
"""
