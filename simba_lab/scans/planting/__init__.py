"""Effects planted in somebody's scan: where its voxels lie in the template, and what is changed."""
