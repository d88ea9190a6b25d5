"""Tables, pictures and pages of scores, layers and comparisons."""
