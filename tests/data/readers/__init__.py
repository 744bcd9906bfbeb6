"""Tests of `lockadapt.data.readers`."""
