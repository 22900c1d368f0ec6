"""Config, runs and their folders, ranks, files, signals: knows nothing of preferences."""
