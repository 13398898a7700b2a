"""What can be done against a shortcut."""
