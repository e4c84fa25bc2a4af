"""Strategies for finite MDPs that learn nothing between tasks, which RL² compares itself with in its Table 2."""
