"""The one place that holds the version; imports nothing, so that `lockadapt --version` stays instant."""

__version__ = "0.2.0"
