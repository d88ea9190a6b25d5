"""Training: steps, epochs, and what can go wrong with them."""
