"""The pretrained model: where it comes from, its dtypes, its classification head, its counts."""
