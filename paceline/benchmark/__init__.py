"""Measures speed, memory, cost and accuracy, always beside a control in the same run; knows nothing of terminals."""
