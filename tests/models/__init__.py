"""Tests of lockadapt.models."""
