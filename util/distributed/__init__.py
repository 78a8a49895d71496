"""Several processes: the process group, synchronized batch norm, the watchdog."""
