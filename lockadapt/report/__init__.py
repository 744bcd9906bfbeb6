"""What a run did, as one HTML file: curves, scores, and predictions beside their pictures."""
