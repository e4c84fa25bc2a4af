"""Few-shot learning: supervised tasks of a few examples each, on the same inner loop as reinforcement learning."""
