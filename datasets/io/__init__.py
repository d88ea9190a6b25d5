"""Files: fetched, decoded, stored, read."""
