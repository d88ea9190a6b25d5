"""What a trained model is worth: bounds, likelihoods, collapse, comparisons."""
