"""A page in the browser for nets that segment: drop an image, see what the net sees (`fcnproto serve`)."""
