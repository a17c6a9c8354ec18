"""Result records (`result.json`): their layout, reading and writing."""
