"""Random input in place of a written table: whatever is read, it is taken or refused, and never ends in a traceback."""
