"""Vector environments: everything that steps many instances, each with its own task.

Worker processes import this package: nothing in it may reach torch, and a test checks that.
"""
