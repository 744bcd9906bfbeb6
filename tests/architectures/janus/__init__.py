"""Tests of the Janus body."""
