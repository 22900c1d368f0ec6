"""Measures, the report, rivals, verdicts, and how samples are shown."""
