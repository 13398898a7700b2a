"""The methods of attribution: for each a small class of settings, which explains volumes."""
