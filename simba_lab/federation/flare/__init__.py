"""Deployment on NVIDIA FLARE: processes, the job that they run, and its submission."""
