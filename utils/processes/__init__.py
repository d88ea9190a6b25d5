"""Several processes: launching, collectives, devices and threads, detection of failed peers."""
