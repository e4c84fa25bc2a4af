"""Families of few-shot tasks."""

from metarl.fewshot.tasks.base import FewShotTasks
from metarl.fewshot.tasks.own import image_folder, labelled_arrays
from metarl.fewshot.tasks.registry import load_tasks
from metarl.fewshot.tasks.sampled import sampled_tasks

__all__ = ["FewShotTasks", "image_folder", "labelled_arrays", "load_tasks", "sampled_tasks"]
