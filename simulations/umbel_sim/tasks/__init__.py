"""Task files to copy: each is one Keras model and how to train it."""
