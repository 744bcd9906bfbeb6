"""What a Python program calls: the steps of a run on folders or open runs, with small objects as results."""
