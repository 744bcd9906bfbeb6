"""Tests of `lockadapt.data`."""
