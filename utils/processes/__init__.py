"""Several processes: launched, introduced, summed over, watched."""
