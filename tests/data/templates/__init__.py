"""Shapes of real chat templates, and what is learned and asked with each."""
