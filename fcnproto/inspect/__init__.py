"""What a net costs, how long it takes, what its blobs hold: summary, timing, features, running on images or arrays."""
