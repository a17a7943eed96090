"""Other published systems as options of the same model, a file per idea."""
