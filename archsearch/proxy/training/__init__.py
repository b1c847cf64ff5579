"""Training of small copies: the recipe, the stream of batches, gradients, and top-1 accuracy on the validation images."""
