"""From velocity fields to an image: flows, scanner, processor and GPU."""
