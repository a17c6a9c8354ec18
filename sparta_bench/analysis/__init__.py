"""What the paper analyses besides accuracy: step time, memory, ranks, the cost of merging."""
