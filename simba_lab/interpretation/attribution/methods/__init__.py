"""The methods of attribution: a small class of settings for each, which explains a batch of volumes."""
