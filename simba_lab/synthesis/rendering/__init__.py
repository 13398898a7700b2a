"""From a scenario to volumes: deformations, effects, scanner, rendering on processor and GPU."""
