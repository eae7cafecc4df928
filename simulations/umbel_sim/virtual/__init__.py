"""Virtual devices: their speed, and the virtual times at which they are available."""
