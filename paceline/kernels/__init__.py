"""Functions on tensors; knows shapes and numbers, nothing of requests, models or caches."""
