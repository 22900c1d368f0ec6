"""Measures, verdicts of outside judges, what is logged, and how samples and figures are shown."""
