"""Networks: stacked MLPs whose weights carry a task axis, action distributions, memories."""
