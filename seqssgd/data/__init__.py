"""Prepared files in, batches out."""
