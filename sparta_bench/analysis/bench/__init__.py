"""`sparta-bench bench`: what a training step costs, method beside method.

Everybody gets the same random weights, the same batch, the same optimizer and the project's dtype
rule. On a CPU all stay in memory and take turns: one round is a few steps of each contender, so
that a machine that is slower for a while changes both sides of a ratio. On CUDA each is built once,
alone in memory, and has its rounds one after the other. docs/benchmark.md says more.
"""
