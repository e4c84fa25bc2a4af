"""Pure functions: tensors in, tensors out. No classes, no state, no environment."""
