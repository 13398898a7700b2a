"""The template, and how healthy people vary."""
