"""Commands that are killed at points where they change files, run again, and compared with ones that nothing killed."""
