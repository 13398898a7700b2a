"""Checks of scans: whether each lies where the template lies, whole, and shows a brain alone."""
