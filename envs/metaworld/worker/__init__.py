"""What runs in a worker process of the Meta-World pool.

Every worker would pay for loading torch, and needs none: nothing in this package may reach it, and a test checks that.
"""
