"""What tests share: tiny models, rows, finished runs, a warm process for proofs."""
