"""Pictures: label maps with legends, filters and activations, curves."""
