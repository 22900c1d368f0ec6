"""Config and its checks, runs and their folders, ranks, files, signals: no model, no equation."""
