"""Other frameworks' weights, and proof that the numbers agree."""
