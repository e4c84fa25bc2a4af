"""Families of few-shot tasks."""
