"""One run: its folder, configuration, checkpoints, processes and signals."""
